"""A hook for trainings in tests: run the teacher in each step, on the same images."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class UncachedHook(Hook):
    """Take the caches away after the sampler has got their views."""

    def before_train(self, runner: Runner) -> None:
        for teacher in runner.model.teachers.values():
            teacher.cache = None
