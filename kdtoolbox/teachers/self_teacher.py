"""The student of earlier steps as teacher: its moving average or a snapshot."""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from kdtoolbox.registry import MODELS, TEACHERS
from kdtoolbox.teachers.teacher import NAME, Teacher


@TEACHERS.register_module()
class SelfTeacher(Teacher):
    """A copy of the student that follows it through the training.

    With a moving average of the student's weights this is the mean teacher
    (arXiv:1703.01780); with `Snapshot` it is the student of some iterations ago.
    ``tools/train.py`` adds the `FollowStudentHook` that updates and saves the copy.

    Args:
        student: The student.
        average: Config of an averaged model of mmengine or mmdet. Its ``momentum`` is
            the weight of the student in an update, and its type sets a schedule:
            mmengine's ``MomentumAnnealingEMA`` or ``mmdet.ExpMomentumEMA`` start with
            a large one.
        name: Name of the teacher.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If the type is not an averaged model.

    Example:
        >>> student = nn.Conv2d(1, 1, 1)
        >>> teacher = SelfTeacher(student, dict(type='Snapshot', interval=2))
        >>> teacher.start(student)
        >>> _ = nn.init.ones_(student.weight)
        >>> for _ in range(2):
        ...     teacher.update(student)
        >>> teacher.model.weight.item()
        1.0
    """

    follows = True

    def __init__(
        self,
        student: nn.Module,
        average: Mapping[str, Any] | None = None,
        name: str = NAME,
        where: str = 'model.teacher',
    ) -> None:
        average = average or dict(type='ExponentialMovingAverage', momentum=0.001)
        kind = MODELS.get(average['type'])
        if kind is None or not issubclass(kind, BaseAveragedModel):
            raise ValueError(
                f'{where}.average.type: {average["type"]!r} is not an averaged model; '
                "write average=dict(type='ExponentialMovingAverage', momentum=0.001)"
            )
        averaged = MODELS.build(dict(average, _scope_='kdtoolbox', model=student))
        super().__init__(averaged, name, where)

    @property
    def model(self) -> Any:
        """The frozen copy of the student."""
        return self._averaged.module

    @property
    def _averaged(self) -> Any:
        return self._root

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Teacher:
        """Return a teacher with ``fn`` applied to all its tensors."""
        teacher = super().moved(fn)
        root: Any = teacher._root
        if root.update_buffers:
            # These are views of the tensors that have moved.
            root.avg_parameters = root.module.state_dict()
        return teacher

    def start(self, student: nn.Module) -> None:
        """Copy the student."""
        self._averaged.steps.zero_()
        self._averaged.update_parameters(student)

    def update(self, student: nn.Module) -> None:
        """Update the copy; its type and interval say how and how often."""
        self._averaged.update_parameters(student)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copy and the number of its updates."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
        self._averaged.load_state_dict(state)


@MODELS.register_module()
class Snapshot(BaseAveragedModel):
    """The weights of a model as they were at the last multiple of an interval.

    Args:
        model: The model.
        interval: Iterations between two copies.
    """

    def __init__(self, model: nn.Module, interval: int) -> None:
        super().__init__(model, interval, update_buffers=True)

    def avg_func(
        self, averaged_param: Tensor, source_param: Tensor, steps: int
    ) -> None:
        """Copy the weights."""
        averaged_param.copy_(source_param)
