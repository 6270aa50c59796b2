from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.diagnosis.loss_meter import PARAMETERS, LossMeter, cosine
from kdtoolbox.diagnosis.measurements import LossReport
from kdtoolbox.diagnosis.suggestions import suggest_weight
from kdtoolbox.distillers.gradient_shares import TASK


@pytest.fixture(scope='module')
def distiller(toy: SimpleNamespace) -> Any:
    torch.manual_seed(0)
    changes = dict(
        connectors=dict(
            aligned=dict(
                type='ConvConnector',
                input='student.fpn',
                in_channels=8,
                out_channels=16,
            )
        ),
        losses=dict(
            loss_pkd=dict(
                type='PKDLoss',
                student='aligned',
                teacher='teacher.fpn',
                loss_weight=2.0,
            )
        ),
    )
    model = toy.build_distiller(toy.gfl(), toy.gfl(out=16), **changes)
    model.init_weights()
    return model


def measured(distiller: Any, toy: SimpleNamespace, weight: float = 2.0) -> LossMeter:
    model = deepcopy(distiller).train()
    model.losses['loss_pkd'].loss_weight = weight
    meter = LossMeter(model)
    model.observers.append(meter)
    data = model.data_preprocessor(toy.det_data(), training=True)
    model(**data, mode='loss')
    return meter


def test_shares_are_those_of_the_gradients(
    distiller: Any, toy: SimpleNamespace
) -> None:
    model = deepcopy(distiller).train()
    seen = []
    model.observers.append(seen.append)
    data = model.data_preprocessor(toy.det_data(), training=True)
    model(**data, mode='loss')
    [step] = seen
    fpn = step.wires['student.fpn']
    task = sum(
        term.mean()
        for loss in step.task_losses.values()
        for term in (loss if isinstance(loss, list) else [loss])
    )
    norms = []
    for loss in (task, step.losses['loss_pkd']):
        found = torch.autograd.grad(loss, fpn, retain_graph=True)
        norms.append(float(torch.cat([x.flatten() for x in found]).norm()))

    report = measured(distiller, toy).reports()['loss_pkd']
    assert report.place == 'student.fpn'
    assert report.share == pytest.approx(norms[1] / sum(norms), rel=1e-4)
    assert report.gradients['student.fpn'] == pytest.approx(norms[1], rel=1e-4)
    assert report.value == pytest.approx(float(step.losses['loss_pkd']), rel=1e-4)
    assert 0 < report.shares[PARAMETERS] < 1
    assert -1 <= report.cosine <= 1


def test_values_share_the_total(distiller: Any, toy: SimpleNamespace) -> None:
    reports = measured(distiller, toy).reports()
    assert list(reports) == [TASK, 'loss_pkd']
    assert sum(r.share_of_total for r in reports.values()) == pytest.approx(1)
    assert reports[TASK].weight is None
    assert reports['loss_pkd'].weight == 2


@pytest.mark.parametrize('share', [0.05, 0.3, 0.9])
def test_the_suggested_weight_gives_the_share(
    share: float, distiller: Any, toy: SimpleNamespace
) -> None:
    large = measured(distiller, toy, weight=2000.0).reports()['loss_pkd']
    weight = suggest_weight(large, share)
    again = measured(distiller, toy, weight).reports()['loss_pkd']
    assert again.share == pytest.approx(share, rel=1e-3)


def test_connected_and_raw_records_are_compared(
    distiller: Any, toy: SimpleNamespace
) -> None:
    found = measured(distiller, toy).similarities
    pairs = {(x.student, x.teacher) for x in found}
    assert pairs == {('aligned', 'teacher.fpn'), ('student.fpn', 'teacher.fpn')}
    assert [x.level for x in found] == [0, 1, 2] * 2
    assert all(0 <= x.cka <= 1 for x in found)


def test_measuring_leaves_no_gradient(distiller: Any, toy: SimpleNamespace) -> None:
    meter = measured(distiller, toy)
    assert all(p.grad is None for p in meter._distiller.parameters())


def test_a_loss_of_other_wires_is_judged_by_the_parameters(
    toy: SimpleNamespace,
) -> None:
    torch.manual_seed(0)
    model = toy.build_distiller(toy.segmentor(), toy.segmentor()).train()
    meter = LossMeter(model)
    model.observers.append(meter)
    data = model.data_preprocessor(toy.seg_data(), training=True)
    model(**data, mode='loss')
    report = meter.reports()['loss_cwd']
    # The task reads only the last two of the recorded stages.
    assert report.place == 'student.fpn'
    without = LossReport(report.value, shares={PARAMETERS: 0.5}, place=PARAMETERS)
    assert without.share == 0.5


def test_cosine() -> None:
    one = torch.tensor([1.0, 0.0])
    assert cosine(one, torch.tensor([0.0, 2.0])) == 0
    assert cosine(one, torch.tensor([3.0, 0.0])) == 1
    assert cosine(one, torch.zeros(2)) is None
