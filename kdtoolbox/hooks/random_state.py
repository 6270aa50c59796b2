"""Carry the random state over an interruption."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Save the random state and go on from it after ``resume``.

    mmengine restores weights, optimizer, schedules and the place in the data, but not
    the state that dropout draws from; ``tools/train.py`` adds this hook to every run.
    Of several processes the first saves and restores its state; the others start
    afresh from the run's seed, since mmengine writes checkpoints in the first alone.
    """

    def __init__(self) -> None:
        self._resumed: dict | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state to the checkpoint."""
        checkpoint['random_state'] = _get_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state for the first iteration of a resumed run."""
        if runner._resume and is_main_process():
            self._resumed = checkpoint.get('random_state')

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Set the state once; building the loaders has drawn from it since."""
        if self._resumed is not None:
            _set_state(self._resumed)
            self._resumed = None


def _get_state() -> dict:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=torch.get_rng_state(),
        cuda=cuda,
    )


def _set_state(state: dict) -> None:
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
