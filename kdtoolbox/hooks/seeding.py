"""Seed the random numbers of each iteration from its number."""

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

    A resumed mmengine run restores the weights, the optimizer, the schedules and the
    position in the data, but not the random state that dropout uses. With this hook
    that state depends only on the iteration, so it needs no restoring, in any number
    of processes. ``tools/train.py`` adds it to every run, and a ``SeededSampler`` for
    the random numbers of the data loader.

    Raises:
        ValueError: If a run resumes in the middle of an epoch, which mmengine would
            train again from its start.
    """

    # Other hooks may draw random numbers, so this one has to run before.
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Seed the random numbers of the iteration."""
        seeds = draw_seeds(runner.seed, get_rank(), runner.iter)
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise if the run resumes in the middle of an epoch."""
        if runner._resume and isinstance(runner.train_loop, EpochBasedTrainLoop):
            _check_epoch(len(runner.train_loop.dataloader), **checkpoint['meta'])


def _check_epoch(length: int, epoch: int, iter: int, **_: Any) -> None:
    if iter != epoch * length:
        raise ValueError(
            f'the checkpoint to resume from was saved after {epoch} epochs and {iter} '
            f'iterations, but an epoch has {length}. If it was saved in the middle of '
            'an epoch, mmengine would train that epoch again; save with '
            '`default_hooks.checkpoint.by_epoch=True`. If the batch size or the number '
            'of processes has changed, resume with the previous ones'
        )
