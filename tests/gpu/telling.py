"""A hook that says on what a run trains."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import distributed


@HOOKS.register_module()
class TellingHook(Hook):
    def before_train(self, runner: Runner) -> None:
        device = next(runner.model.parameters()).device.type
        kind = type(runner.model).__name__
        print(f'{kind} on {device} over {distributed.get_backend()}')
