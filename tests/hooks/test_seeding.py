import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from kdtoolbox.hooks import SeedHook


def draws(seed: int, iteration: int) -> tuple:
    SeedHook().before_train_iter(SimpleNamespace(seed=seed, iter=iteration), 0)
    return random.random(), np.random.rand(), float(torch.rand(()))


def resumed(kind: type, resume: bool, epoch: int, done: int) -> None:
    loop: Any = object.__new__(kind)
    loop.dataloader = [None] * 4
    runner = SimpleNamespace(train_loop=loop, _resume=resume)
    meta = dict(epoch=epoch, iter=done, seed=0)
    SeedHook().after_load_checkpoint(runner, dict(meta=meta))


def test_the_random_numbers_of_an_iteration_depend_on_its_number() -> None:
    expected = [draws(0, iteration) for iteration in range(3)]
    assert [draws(0, iteration) for iteration in (2, 0)] == [expected[2], expected[0]]
    assert len({draw for one in expected for draw in one}) == 9
    assert draws(1, 0) != expected[0]


def test_processes_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first = draws(0, 1)
    monkeypatch.setattr('kdtoolbox.hooks.seeding.get_rank', lambda: 1)
    assert not set(draws(0, 1)) & set(first)


def test_a_checkpoint_from_within_an_epoch_is_refused() -> None:
    # With by_epoch=False a checkpoint of the last iteration has the epoch before.
    for epoch, done in ((0, 3), (1, 6), (1, 8)):
        with pytest.raises(ValueError, match=r'checkpoint\.by_epoch=True'):
            resumed(EpochBasedTrainLoop, True, epoch, done)
    resumed(EpochBasedTrainLoop, True, 2, 8)


def test_load_from_and_iteration_loops_accept_any_checkpoint() -> None:
    resumed(EpochBasedTrainLoop, False, 1, 6)
    resumed(IterBasedTrainLoop, True, 0, 3)
