from typing import Any

import pytest
import torch
from torch import nn

from kdtoolbox.checkpoints.state_dicts import (
    ema_copies,
    strip_prefix,
    unwrap,
    without,
)


def wrapped(prefix: str, model: nn.Module | None = None) -> Any:
    """Return the state dict of a model inside modules with the names of a prefix."""
    model = model or net()
    for name in reversed(prefix.split('.')[:-1]):
        model = nn.ModuleDict({name: model})
    return model.state_dict()


def net() -> nn.Module:
    return nn.ModuleDict(dict(neck=nn.BatchNorm2d(2), head=nn.Conv2d(2, 2, 1)))


KEYS = net().state_dict().keys()
PREFIXES = ['module.', 'model.', 'student.', 'architecture.', 'teacher.', 'detector.']
PREFIXES += ['module.model.', 'module.student.', 'model.module.detector.']


@pytest.mark.parametrize('prefix', PREFIXES)
def test_a_prefix_of_all_keys_is_removed(prefix: str) -> None:
    state, changes = unwrap(wrapped(prefix), KEYS)
    assert state.keys() == KEYS
    assert changes == [f'removed {prefix!r} in front of its keys']
    # Modules such as DCN read the version of their weights' layout from it.
    assert state._metadata == net().state_dict()._metadata


def test_a_state_of_the_model_passes() -> None:
    state = net().state_dict()
    assert unwrap(state, KEYS) == (state, [])
    inner = wrapped('teacher.')
    assert unwrap(inner, inner.keys()) == (inner, [])


@pytest.mark.parametrize('extra', ['bbox_head.weight', 'module', 'other.neck.weight'])
def test_a_prefix_of_some_keys_stays(extra: str) -> None:
    state = {**wrapped('module.'), extra: torch.ones(1)}
    left, changes = unwrap(state, KEYS)
    assert (left, changes) == (state, [])


def test_an_unknown_prefix_stays() -> None:
    assert unwrap(wrapped('other.'), KEYS)[1] == []


def test_the_student_is_taken_from_a_distillation() -> None:
    parts = dict(student=net(), connectors=net(), losses=nn.Linear(1, 1))
    for prefix in ('', 'module.'):
        state, changes = unwrap(wrapped(prefix, nn.ModuleDict(parts)), KEYS)
        assert state.keys() == KEYS
        assert changes[0] == f"removed '{prefix}student.' in front of its keys"
        assert changes[1].startswith('left out connectors, losses')


def test_two_models_stay() -> None:
    state = nn.ModuleDict(dict(student=net(), teacher=net())).state_dict()
    assert unwrap(state, KEYS) == (state, [])


@pytest.mark.parametrize('counter', ['steps', 'n_averaged'])
def test_the_counter_of_a_moving_average_is_ignored(counter: str) -> None:
    state = {**wrapped('module.'), counter: torch.tensor(3)}
    state, changes = unwrap(state, KEYS)
    assert state.keys() == KEYS
    assert changes == ["removed 'module.' in front of its keys"]


def test_averages_of_mmdet_2_are_found_and_left_out() -> None:
    model = net()
    for key, value in net().state_dict().items():
        model.register_buffer('ema_' + key.replace('.', '_'), value)
    state = model.state_dict()
    found = ema_copies(state)
    assert len(found) == len(KEYS)
    rest = without(state, found)
    assert rest.keys() == KEYS
    assert rest._metadata == net().state_dict()._metadata


def test_a_weight_with_the_prefix_of_an_average_stays() -> None:
    assert ema_copies({'ema_gain': torch.ones(1), 'gain2': torch.ones(1)}) == []


def test_metadata_follows_the_modules() -> None:
    state = strip_prefix(nn.ModuleDict(dict(a=net(), b=net())).state_dict(), 'a.')
    assert state._metadata == net().state_dict()._metadata
