import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdtoolbox.hooks import RandomStateHook


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


@pytest.fixture
def checkpoint() -> dict:
    checkpoint: dict = {}
    RandomStateHook().before_save_checkpoint(SimpleNamespace(), checkpoint)
    return checkpoint


def test_a_resumed_run_draws_what_the_interrupted_one_would_have(
    checkpoint: dict,
) -> None:
    expected = draws()
    hook, runner = RandomStateHook(), SimpleNamespace(_resume=True)
    hook.after_load_checkpoint(runner, checkpoint)
    draws()
    hook.before_train_iter(runner, 0)
    assert draws() == expected
    hook.before_train_iter(runner, 1)
    assert draws() != expected


def test_loaded_weights_alone_leave_the_state(checkpoint: dict) -> None:
    hook, runner = RandomStateHook(), SimpleNamespace(_resume=False)
    hook.after_load_checkpoint(runner, checkpoint)
    state = torch.get_rng_state()
    draws()
    hook.before_train_iter(runner, 0)
    assert not torch.equal(torch.get_rng_state(), state)


def test_other_processes_do_not_copy_the_first(
    checkpoint: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('kdtoolbox.hooks.random_state.is_main_process', lambda: False)
    hook, runner = RandomStateHook(), SimpleNamespace(_resume=True)
    hook.after_load_checkpoint(runner, checkpoint)
    draws()
    state = torch.get_rng_state()
    hook.before_train_iter(runner, 0)
    assert torch.equal(torch.get_rng_state(), state)
