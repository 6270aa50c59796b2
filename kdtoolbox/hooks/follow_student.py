"""Let the teachers that are made of the student follow it."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Size, Tensor

from kdtoolbox.registry import HOOKS

KEY = 'teachers'
"""Where a checkpoint contains the weights of the teachers."""


@HOOKS.register_module()
class FollowStudentHook(Hook):
    """Update each `SelfTeacher` after each iteration, and save it in checkpoints.

    A teacher is no part of the model, so no checkpoint would contain it without this
    hook. ``tools/train.py`` adds it to every run with such a teacher.

    Args:
        partly: Resume the teachers that fit; the others start as copies of the
            student. ``tools/train.py --resume-partly`` sets it.

    Raises:
        ValueError: If a run resumes from a checkpoint without a teacher that fits, and
            ``partly`` is False.
    """

    # Before CheckpointHook saves, and after the weights have moved.
    priority = 'NORMAL'

    def __init__(self, partly: bool = False) -> None:
        self.partly = partly
        self._restored: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Copy the student of the start to the teachers that were not restored."""
        model = _bare(runner)
        for name, teacher in model.teachers.items():
            if name not in self._restored:
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
            state = checkpoint.get(KEY, {}).get(name, {})
            if _shapes(state) == _shapes(teacher.state_dict()):
                teacher.load_state_dict(state)
                self._restored.add(name)
                continue
            if not self.partly:
                raise ValueError(
                    f'{teacher.where}: the checkpoint to resume from has no teacher '
                    f'{name!r} that fits; resume from one of this recipe, start the '
                    'teacher as a copy of the student: --resume-partly, or start from '
                    'the student: load_from=..., resume=False'
                )
            runner.logger.warning(
                f'{teacher.where}: the checkpoint has no teacher {name!r} that fits; '
                'it starts as a copy of the student'
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: value.shape for name, value in state.items()}


def _bare(runner: Runner) -> Any:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
