"""The student of earlier steps as teacher: its moving average or a snapshot."""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from kdtoolbox.configuration import check_keys
from kdtoolbox.registry import MODELS, TEACHERS
from kdtoolbox.teachers.teacher import NAME, Teacher

_DEFAULT = dict(type='ExponentialMovingAverage', momentum=0.001)
_LINE = "write average=dict(type='ExponentialMovingAverage', momentum=0.001)"


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
        ValueError: If the type is not an averaged model, or a value is out of range.
        TypeError: If ``average`` is no dict, or a key of it is unknown or missing.

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
        average = _DEFAULT if average is None else average
        super().__init__(_averaged(student, average, f'{where}.average'), name, where)

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


def _averaged(student: nn.Module, average: Any, where: str) -> nn.Module:
    """Return the averaged copy of a student."""
    if not isinstance(average, Mapping) or 'type' not in average:
        raise TypeError(
            f'{where}: expected a dict with `type`, got {average!r}; {_LINE}'
        )
    name = average['type']
    kind = MODELS.get(name) if isinstance(name, str) else name
    if not isinstance(kind, type) or not issubclass(kind, BaseAveragedModel):
        raise ValueError(f'{where}.type: {name!r} is not an averaged model; {_LINE}')
    # The copy moves with the distiller.
    check_keys(average, kind, where, given=('model', 'device'))
    interval = average.get('interval', 1)
    if type(interval) is not int or interval < 1:
        raise ValueError(
            f'{where}.interval: expected a number of iterations of at least 1, got '
            f'{interval!r}; write interval=1'
        )
    try:
        return MODELS.build(dict(average, _scope_='kdtoolbox', model=student))
    except (AssertionError, TypeError) as error:
        raise ValueError(f'{where}: {error}; {_LINE}') from error


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
