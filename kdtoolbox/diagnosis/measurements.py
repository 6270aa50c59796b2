"""The numbers that the doctor measures, from which it draws its findings."""

import re
from dataclasses import dataclass, field


@dataclass
class Scores:
    """Scores of the models on validation images, by the metric of the config.

    Attributes:
        metric: Name of the metric, such as ``coco/bbox_mAP``.
        images: Number of images.
        perfect: The best value of the metric, 1 or 100.
        teacher: Score of the teacher.
        student: Score of the student.
        random: Score of the teacher's architecture with random weights.
        classes: For each class the scores of teacher and student.
        fault: Why the teacher has no score, if it has none.
    """

    metric: str = ''
    images: int = 0
    perfect: float = 1.0
    teacher: float | None = None
    student: float | None = None
    random: float | None = None
    classes: dict[str, tuple[float, float]] = field(default_factory=dict)
    fault: str = ''

    def at_chance(self, margin: float) -> bool:
        """Return whether the teacher is not above random weights by a margin.

        Args:
            margin: Part of the best value of the metric.
        """
        if self.teacher is None or self.random is None:
            return False
        return self.teacher <= self.random + margin * self.perfect


@dataclass
class TaskLosses:
    """Sums of the task losses on training batches.

    Attributes:
        teacher: That of the teacher.
        random: That of the teacher's architecture with random weights.
        fault: Why they were not computed, if they were not.
    """

    teacher: float | None = None
    random: float | None = None
    fault: str = ''

    def at_chance(self, part: float) -> bool:
        """Return whether the teacher's loss is not below this part of the random one.

        A loss that is not finite is at chance.
        """
        if self.teacher is None or self.random is None:
            return False
        return not self.teacher < part * self.random


@dataclass
class LossReport:
    """What one loss, or the sum of the task losses, does to the student.

    Attributes:
        value: Its mean value.
        share_of_total: Its share of the sum of all losses.
        weight: Its ``loss_weight``; None for the task.
        place: The layer of the student at which it is compared with the task.
        gradients: For each place the norm of its gradient.
        task: For each place the norm of the task's gradient.
        shares: For each place its share of the sum of these two norms.
        cosines: For each place the cosine of its gradient and that of the task.
    """

    value: float
    share_of_total: float | None = None
    weight: float | None = None
    place: str | None = None
    gradients: dict[str, float] = field(default_factory=dict)
    task: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Its share of the gradient at its own place."""
        return None if self.place is None else self.shares.get(self.place)

    @property
    def cosine(self) -> float | None:
        """Its cosine at its own place."""
        return None if self.place is None else self.cosines.get(self.place)


@dataclass
class Similarity:
    """Linear CKA of one level of two wires; see `linear_cka`."""

    student: str
    teacher: str
    level: int
    cka: float


@dataclass
class Classes:
    """The class lists of teacher and data, None where unknown.

    Attributes:
        teacher: Names in the teacher's checkpoint.
        data: Names of the data set.
        counts: Numbers of classes of the teacher's and the student's heads.
        fault: The error that a training would raise for them, if any.
    """

    teacher: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    counts: tuple[int | None, int | None] = (None, None)
    fault: str = ''

    @property
    def differ(self) -> bool:
        """Whether names or numbers are known to differ."""
        of_teacher, of_student = self.counts
        return bool(
            self.fault
            or (
                self.teacher and self.data and _plain(self.teacher) != _plain(self.data)
            )
            or (None not in self.counts and of_teacher != of_student)
        )


def _plain(names: tuple[str, ...]) -> list[str]:
    return [re.sub(r'[\W_]+', '', name.casefold()) for name in names]


@dataclass
class Measurements:
    """All that the doctor has measured.

    Attributes:
        trained: Whether the student comes from a checkpoint.
        classes: The class lists.
        scores: The scores on validation images.
        task_losses: The teacher's task losses.
        losses: `task` and the distillation losses by name.
        similarities: The similarity of compared wires, level by level.
        overfit: Each loss in each step on one batch.
        fault: Why a loss could not be computed, if one could not.
    """

    trained: bool = False
    classes: Classes = field(default_factory=Classes)
    scores: Scores = field(default_factory=Scores)
    task_losses: TaskLosses = field(default_factory=TaskLosses)
    losses: dict[str, LossReport] = field(default_factory=dict)
    similarities: list[Similarity] = field(default_factory=list)
    overfit: dict[str, list[float]] = field(default_factory=dict)
    fault: str = ''
