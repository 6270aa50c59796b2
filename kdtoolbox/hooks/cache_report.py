"""Log how many records of cached teachers were read and computed."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class CacheReportHook(Hook):
    """Log after each epoch how often each cached teacher has run.

    A cache that is complete computes nothing. One that computes in later epochs than
    its views gets images that never repeat. ``tools/train.py`` adds this hook to a run
    with a cached teacher.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the counts since the last report of this process."""
        for teacher in cached_teachers(runner.model):
            cache = teacher.cache
            runner.logger.info(
                f'{teacher.where}.cache: the records of {cache.read} images were read '
                f'from {cache.path}, those of {cache.computed} computed'
            )
            cache.read = cache.computed = 0


def cached_teachers(model: Any) -> list:
    """Return the teachers of a model that have a cache.

    Args:
        model: A distiller or another model, with or without a wrapper.
    """
    bare = model.module if is_model_wrapper(model) else model
    teachers = getattr(bare, 'teachers', None) or {}
    return [some for some in teachers.values() if some.cache is not None]
