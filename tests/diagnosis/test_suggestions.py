import pytest

from kdtoolbox.diagnosis.measurements import LossReport
from kdtoolbox.diagnosis.suggestions import (
    config_lines,
    suggest_weight,
    suggest_weights,
)


def loss(own: float, task: float, weight: float | None = 2.0) -> LossReport:
    return LossReport(1.0, None, weight, 'a', {'a': own}, {'a': task})


def test_weight_for_a_share() -> None:
    assert suggest_weight(loss(3.0, 1.0), 0.5) == pytest.approx(2 / 3)
    assert suggest_weight(loss(3.0, 1.0), 0.75) == pytest.approx(2)


@pytest.mark.parametrize('report', [loss(0, 1), loss(1, 0), loss(1, 1, 0.0)])
def test_no_weight_without_a_gradient(report: LossReport) -> None:
    assert suggest_weight(report, 0.3) is None
    assert suggest_weights(dict(loss_a=report), 0.3) == {}


def test_a_share_of_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r'between 0 and 1.*--suggest-weights 0\.3'):
        suggest_weight(loss(1, 1), 1.0)


def test_lines_to_paste() -> None:
    weights = suggest_weights(dict(task=LossReport(1.0), loss_a=loss(3, 1)), 0.5)
    line, options = config_lines(weights | dict(loss_b=1e-7))
    scope: dict = {}
    exec(line, scope)
    assert scope['model']['losses'] == dict(
        loss_a=dict(loss_weight=0.667), loss_b=dict(loss_weight=1e-7)
    )
    assert options == (
        '--cfg-options model.losses.loss_a.loss_weight=0.667 '
        'model.losses.loss_b.loss_weight=1e-07'
    )
