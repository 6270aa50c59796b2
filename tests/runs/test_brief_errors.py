"""Tools print messages of faults, and tracebacks only on request."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config

from kdtoolbox.runs.brief_errors import (
    PATIENCE,
    STATUS,
    FaultyConfig,
    all_faults,
    brief_errors,
)

Toy = SimpleNamespace


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (ValueError('work_dir: taken'), 'work_dir: taken'),
        (TypeError('model.a: no b'), 'model.a: no b'),
        (KeyError('sampler'), 'KeyError: sampler'),
    ],
)
@pytest.mark.parametrize('show', [False, True])
def test_a_fault_ends_the_tool_with_its_message(
    error: Exception, told: str, show: bool, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended, brief_errors(show):
        raise error
    assert ended.value.code == STATUS == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == told
    assert ('Traceback (most recent call last):' in printed) == show


@pytest.mark.parametrize('kind', [RuntimeError, AttributeError, AssertionError])
def test_bugs_keep_their_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind, match='a bug'), brief_errors():
        raise kind('a bug')


def test_errors_that_do_not_apply_keep_their_traceback() -> None:
    with pytest.raises(ValueError, match='later'), brief_errors(applies=lambda: False):
        raise ValueError('later')


def broken(toy: Toy) -> Config:
    losses = dict(loss_a=dict(type='PKDLos'), b=dict(type='PKDLoss', student='x'))
    return Config(
        dict(default_scope='mmdet', model=toy.distiller(toy.gfl(), losses=losses))
    )


def test_an_error_is_replaced_by_all_faults(toy: Toy) -> None:
    with pytest.raises(FaultyConfig) as caught, all_faults(broken(toy)):
        raise ValueError("model.losses.loss_a: kdtoolbox has no 'PKDLos'")
    told = str(caught.value)
    assert told.startswith('5 faults:\n1. model.losses.b: PKDLoss reads the wires')
    assert told.count("kdtoolbox has no 'PKDLos'") == 1
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_is_no_fault_of_the_models_comes_first(toy: Toy) -> None:
    with pytest.raises(FaultyConfig) as caught, all_faults(broken(toy)):
        raise ValueError("the checkpoint 'a.pth' does not fit GFL")
    assert str(caught.value).startswith("6 faults:\n1. the checkpoint 'a.pth' does not")
    with pytest.raises(FaultyConfig) as caught, all_faults(broken(toy)):
        raise ValueError('model.losses: another fault')
    assert str(caught.value).startswith('6 faults:\n1. model.losses: another fault')


def test_other_processes_keep_their_own_error(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('kdtoolbox.runs.brief_errors.is_main_process', lambda: False)
    waited: list[int] = []
    monkeypatch.setattr('kdtoolbox.runs.brief_errors.time.sleep', waited.append)
    with pytest.raises(ValueError, match='^mine$'), all_faults(broken(toy)):
        raise ValueError('mine')
    assert waited == [PATIENCE]


def test_a_search_that_fails_leaves_the_error(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Config) -> None:
        raise RuntimeError('a bug')

    monkeypatch.setattr('kdtoolbox.inspection.faults.find_faults', fail)
    told = '^1 fault:\n1. mine$'
    with pytest.raises(FaultyConfig, match=told), all_faults(broken(toy)):
        raise ValueError('mine')


def test_nothing_is_built_again_if_nothing_fails(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Config] = []
    monkeypatch.setattr('kdtoolbox.inspection.faults.find_faults', searches.append)
    with brief_errors(), all_faults(broken(toy)):
        pass
    assert not searches
