"""Let what an iteration draws at random follow from its number alone."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from kdtoolbox.datasets.seeded_sampler import draw_seeds
from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed python, numpy and torch from (seed, rank, iteration) before each iteration.

    mmengine restores weights, optimizer, schedules and the place in the data, but not
    the state that dropout draws from. With this hook there is none to restore, in any
    number of processes. ``tools/train.py`` adds it to every run, and a
    ``SeededSampler`` for what the loader draws.

    Raises:
        ValueError: If a run resumes from within an epoch, which mmengine would train
            again.
    """

    # Before whatever else draws in an iteration.
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Seed the iteration."""
        seeds = draw_seeds(runner.seed, get_rank(), runner.iter)
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to resume in the middle of an epoch."""
        if runner._resume and isinstance(runner.train_loop, EpochBasedTrainLoop):
            _check_epoch(len(runner.train_loop.dataloader), **checkpoint['meta'])


def _check_epoch(length: int, epoch: int, iter: int, **_: Any) -> None:
    if iter != epoch * length:
        raise ValueError(
            f'the checkpoint to resume from was saved after {epoch} epochs and {iter} '
            f'iterations, and an epoch has {length}. If that was within an epoch, it '
            'would be trained again from its start; save with '
            '`default_hooks.checkpoint.by_epoch=True`. If the batch size or the number '
            'of processes was another one, resume with the same'
        )
