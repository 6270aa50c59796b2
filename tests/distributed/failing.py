"""A hook that ends the second process after the third iteration, as FAIL says."""

import os
import signal
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class FailHook(Hook):
    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if get_rank() != 1 or runner.iter + 1 != 3:
            return
        if os.environ['FAIL'] == 'raise':
            raise RuntimeError('the second process fails on purpose')
        if os.environ['FAIL'] == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
