"""Let the teachers that are made of the student follow it."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS

KEY = 'teachers'
"""Where a checkpoint contains the weights of the teachers."""


@HOOKS.register_module()
class FollowStudentHook(Hook):
    """Update each `SelfTeacher` after each iteration, and save it in checkpoints.

    A teacher is no part of the model, so no checkpoint would contain it without this
    hook. ``tools/train.py`` adds it to every run with such a teacher.

    Raises:
        ValueError: If a run resumes from a checkpoint without the teacher.
    """

    # Before CheckpointHook saves, and after the weights have moved.
    priority = 'NORMAL'

    def __init__(self) -> None:
        self._resumed = False

    def before_train(self, runner: Runner) -> None:
        """Copy the student of the start, unless the run is resumed."""
        if not self._resumed:
            model = _bare(runner)
            for teacher in model.teachers.values():
                teacher.start(model.student)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Update the teachers."""
        model = _bare(runner)
        for teacher in model.teachers.values():
            teacher.update(model.student)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the teachers to the checkpoint."""
        checkpoint[KEY] = {
            name: teacher.state_dict()
            for name, teacher in _bare(runner).teachers.items()
            if teacher.follows
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the teachers of a resumed run."""
        if not runner._resume:
            return
        for name, teacher in _bare(runner).teachers.items():
            if not teacher.follows:
                continue
            if name not in checkpoint.get(KEY, {}):
                raise ValueError(
                    f'{teacher.where}: the checkpoint to resume from has no teacher '
                    f'{name!r}; resume from one of this recipe, or start from its '
                    'student: load_from=..., resume=False'
                )
            teacher.load_state_dict(checkpoint[KEY][name])
        self._resumed = True


def _bare(runner: Runner) -> Any:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
