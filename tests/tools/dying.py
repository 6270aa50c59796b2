"""A hook that kills its process where the environment says, for test_resume.py.

``DIE=iter:3`` ends it after the third iteration, ``write:4`` half-way through the
checkpoint of the fourth, ``last:4`` after that and before `last_checkpoint` is written,
``val:4`` at the start of the validation after the fourth.
"""

import io
import os
import resource
import signal
import sys
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class DieHook(Hook):
    def __init__(self) -> None:
        self.place, _, number = os.environ.get('DIE', '').partition(':')
        self.number = int(number or 0)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.place == 'iter' and runner.iter + 1 == self.number:
            die()

    def before_val(self, runner: Runner) -> None:
        if self.place == 'val' and runner.iter == self.number:
            die()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if checkpoint['meta']['iter'] != self.number:
            return
        if self.place == 'write':
            die_beyond(size_of(checkpoint) // 2)
        if self.place == 'last':
            sys.addaudithook(die_before_last_checkpoint)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def size_of(checkpoint: dict) -> int:
    with io.BytesIO() as file:
        torch.save(checkpoint, file)
        return file.tell()


def die_beyond(size: int) -> None:
    """Have the kernel kill the process when it writes more to any one file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Python ignores the signal; nobody can once its default is back.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die_before_last_checkpoint(event: str, arguments: tuple) -> None:
    if event in ('open', 'os.rename') and 'last_checkpoint' in str(arguments[:2]):
        die()
