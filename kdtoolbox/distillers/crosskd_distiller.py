"""Cross-head distillation (CrossKD, arXiv:2306.11369)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.distillers.building import build_section
from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.distillers.split_head import SplitHead
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.recorders import Recorder, Records
from kdtoolbox.registry import MODELS

TOWERS = ('cls_tower', 'reg_tower')
"""Names of the records of the two towers."""

EPS = 1e-6
"""Added to the student's standard deviation, as in the authors' code."""


@MODELS.register_module()
class CrossKDDistiller(Distiller):
    """A distiller that sends the student's head features on through the teacher's head.

    What the student's towers hold after ``stage`` convolutions is brought to the
    teacher's mean and standard deviation per channel and goes on through the rest of
    the frozen teacher head. Its predictions are the wires ``cross.cls``, ``cross.reg``
    and, where the head has one, ``cross.centerness``; those of the teacher itself are
    ``teacher.cls``, ``teacher.reg`` and ``teacher.centerness``. Gradients pass through
    the teacher's head to the student alone.

    Student and teacher need heads of one family with the same priors. Where the towers
    differ in width, ``projection`` says what carries the student's features over; it
    is a deviation, as the paper has equal widths only.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        losses: As `Distiller` takes them.
        stage: Number of convolutions of the student's towers before the cut. The paper
            uses 3 of 4, and 2 for FCOS.
        projection: Config of a connector for the towers' features, built once per
            tower, such as ``dict(type='ConvConnector', in_channels=..., ...)``.
        recorders: Further records beside those of the heads.
        connectors: As `Distiller` takes them.
        init_student: As `Distiller` takes it.
        data_preprocessor: As `Distiller` takes it.

    Raises:
        ValueError: If a head cannot be split or the two do not fit.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        losses: Mapping[str, dict],
        stage: int = 3,
        projection: dict | None = None,
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        self.stage = stage
        self._projection = projection
        super().__init__(
            student,
            teacher,
            losses,
            recorders,
            connectors,
            init_student,
            data_preprocessor,
        )
        with torch.random.fork_rng(devices=[]):
            self.projections, _ = build_section(
                dict.fromkeys(TOWERS, projection) if projection else {},
                'model.projection',
                lambda kind: [],
            )
        self.wiring.add_module('projections', self.projections)

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> dict[str, Mapping[str, Recorder]]:
        """Return the recorders with those of the two heads."""
        mine = _split(self.student, self.stage, 'model.student')
        theirs = self._head
        _check_pair(mine, theirs, self._projection is not None)
        towers = theirs.sources('bbox_head')
        predictions = theirs.prediction_sources('bbox_head')
        return dict(
            student={**recorders['student'], **mine.sources('bbox_head')},
            teacher={**recorders['teacher'], **towers, **predictions},
        )

    @property
    def _head(self) -> SplitHead:
        """The teacher's head; not kept, since a teacher that moves is another one."""
        return _split(self.teacher.model, self.stage, 'model.teacher')

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        crossed = {f'cross.{kind}': {'student', 'teacher'} for kind in self._head.kinds}
        return super().wire_sides() | crossed

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and the predictions of the crossed heads."""
        wires = super().collect_wires(student, teacher)
        aligned = {
            tower: [
                align_scale(*pair)
                for pair in zip(
                    self._project(tower, student[tower]), teacher[tower], strict=True
                )
            ]
            for tower in TOWERS
        }
        read = {
            wire for ends in self.wiring.comparisons.values() for wire in ends.values()
        }
        for kind in self._head.kinds:
            if f'cross.{kind}' in read:
                levels = aligned[f'{self._head.tower_of(kind)}_tower']
                wires[f'cross.{kind}'] = [
                    self._head.finish(kind, level, features)
                    for level, features in enumerate(levels)
                ]
        return wires

    def _project(self, tower: str, levels: list[Tensor]) -> list[Tensor]:
        return self.projections[tower](levels) if self.projections else levels


def align_scale(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Give each channel of the student's map the mean and spread of the teacher's.

    .. math:: (S - mean_c(S)) / (std_c(S) + 10^{-6}) \cdot std_c(T) + mean_c(T)

    The statistics of channel c run over N, H and W of this process; the gradient flows
    through those of the student.

    Deviation: a channel with a single value, whose unbiased standard deviation is not
    defined, becomes the teacher's mean, where the authors' code gives NaN.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        The student's map (N, C, H, W), float32 or wider.

    Example:
        >>> student = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
        >>> teacher = torch.tensor([10.0, 20.0]).reshape(1, 1, 1, 2)
        >>> align_scale(student, teacher).flatten()
        tensor([10.0000, 20.0000])
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        count = student.numel() // student.shape[1]
        s_std, s_mean = _statistics(student, count)
        t_std, t_mean = _statistics(teacher, count)
        gain = t_std / (s_std + EPS)
        return (student - s_mean) * gain + t_mean


def _statistics(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    dims = (0, 2, 3)
    mean = maps.mean(dims, keepdim=True)
    if count == 1:
        return torch.zeros_like(mean), mean
    return maps.std(dims, keepdim=True), mean


def _split(model: Any, stage: int, where: str) -> SplitHead:
    try:
        return SplitHead(getattr(model, 'bbox_head', None), stage)
    except ValueError as error:
        raise ValueError(f'{where}.bbox_head: {error}') from error


def _check_pair(student: SplitHead, teacher: SplitHead, projected: bool) -> None:
    mine, theirs = (
        {
            'kind of head': head.prefix,
            'anchors per cell': getattr(head.head, 'num_base_priors', 1),
            'classes': head.head.cls_out_channels,
            'width of the towers': head.head.feat_channels,
        }
        for head in (student, teacher)
    )
    if projected:
        mine.pop('width of the towers')
    cures = {
        'kind of head': "choose a teacher whose head is of the student's kind, "
        f'{type(student.head).__name__}',
        'anchors per cell': "give the student the teacher's anchors, "
        'model.student.bbox_head.anchor_generator',
        'classes': "choose a teacher that was trained on the student's classes",
        'width of the towers': "set model.projection=dict(type='ConvConnector', "
        f'in_channels={student.head.feat_channels}, '
        f'out_channels={teacher.head.feat_channels})',
    }
    for key, value in mine.items():
        if value != theirs[key]:
            raise ValueError(
                f'model.student.bbox_head: {key}: {value!r}, the teacher has '
                f'{theirs[key]!r}; CrossKD needs two heads of one shape: {cures[key]}, '
                'or take a loss on the neck'
            )
