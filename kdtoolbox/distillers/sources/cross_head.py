"""Cross-head distillation (CrossKD, arXiv:2306.11369)."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.distillers.building import SIDES, Sides, Wires, build_section
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.distillers.split_head import SplitHead
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

TOWERS = ('cls_tower', 'reg_tower')
"""Names of the records of the two towers."""

EPS = 1e-6
"""Added to the student's standard deviation, as in the authors' code."""


@MODELS.register_module()
class CrossHead(Source):
    """Run the rest of the teacher's head on the features of the student's head.

    The output of the student's towers after ``stage`` convolutions gets the teacher's
    mean and standard deviation per channel. The rest of the frozen teacher head then
    predicts from it. Gradients pass through the teacher's head and train the student
    only. The wires:

    - ``cross.cls``, ``cross.reg`` and, where the head has one, ``cross.centerness``:
      the teacher's head on the student's features.
    - ``teacher.cls``, ``teacher.reg`` and ``teacher.centerness``: the teacher's own
      predictions.

    Student and teacher need heads of one family with the same priors. Where their
    towers differ in width, ``projection`` maps the student's features. This is a
    deviation: the paper has equal widths only.

    Args:
        stage: Number of convolutions of the student's towers before the cut. The paper
            uses 3 of 4, and 2 for FCOS.
        projection: Config of a connector for the towers' features, built once per
            tower, such as ``dict(type='ConvConnector', in_channels=..., ...)``.
    """

    asks_teacher = True

    def __init__(self, stage: int = 3, projection: dict | None = None) -> None:
        super().__init__()
        self.stage = stage
        self.projections, _ = build_section(
            dict.fromkeys(TOWERS, projection) if projection else {},
            'projection',
            lambda kind: [],
        )

    def record(self, models: Models) -> Recorders:
        """Record the towers of both heads and the teacher's predictions.

        Raises:
            ValueError: If a head cannot be split, or the two heads differ.
        """
        student, teacher = (
            _split(model, self.stage, f'model.{side}')
            for side, model in zip(SIDES, models, strict=True)
        )
        _check_pair(student, teacher, bool(self.projections), self.where)
        towers = teacher.sources('bbox_head')
        predictions = teacher.prediction_sources('bbox_head')
        return dict(
            student=student.sources('bbox_head'), teacher={**towers, **predictions}
        )

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the crossed predictions; note which of them are read."""
        wires = {f'cross.{kind}': kind for kind in self._head(models).kinds}
        self._read = [kind for wire, kind in wires.items() if wire in read]
        return {wire: set(SIDES) for wire in wires}

    def make_wires(self, models: Models, wires: Wires, observed: Any) -> Wires:
        """Return the crossed predictions that are read."""
        head = self._head(models)
        aligned = {tower: self._aligned(tower, wires) for tower in TOWERS}
        return {
            f'cross.{kind}': [
                head.finish(kind, level, features)
                for level, features in enumerate(
                    aligned[f'{head.tower_of(kind)}_tower']
                )
            ]
            for kind in self._read
        }

    def _head(self, models: Models) -> SplitHead:
        """Return the teacher's head; a teacher that moves gets a new one."""
        return _split(models.teacher, self.stage, 'model.teacher')

    def _aligned(self, tower: str, wires: Wires) -> list[Tensor]:
        features = wires[f'student.{tower}']
        if self.projections:
            features = self.projections[tower](features)
        pairs = zip(features, wires[f'teacher.{tower}'], strict=True)
        return [align_scale(*pair) for pair in pairs]


@full_precision
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
    (s_centered, s_std, _), (_, t_std, t_mean) = map(_centered, (student, teacher))
    return s_centered * (t_std / (s_std + EPS)) + t_mean


def _centered(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return maps minus their means, and standard deviations and means (1, C, 1, 1)."""
    mean = maps.mean((0, 2, 3), keepdim=True)
    centered = maps - mean
    # `std` is fifteen times slower on a CPU. Row by row: one norm over thousands of
    # values loses digits. The gradient of a norm of 0 is 0.
    rows = torch.linalg.vector_norm(centered, dim=3, keepdim=True)
    norm = torch.linalg.vector_norm(rows, dim=(0, 2), keepdim=True)
    count = maps.numel() // maps.shape[1]
    return centered, norm / max(count - 1, 1) ** 0.5, mean


def _split(model: Any, stage: int, where: str) -> SplitHead:
    try:
        return SplitHead(getattr(model, 'bbox_head', None), stage)
    except ValueError as error:
        raise ValueError(f'{where}.bbox_head: {error}') from error


def _check_pair(
    student: SplitHead, teacher: SplitHead, projected: bool, where: str
) -> None:
    student_shape, teacher_shape = (
        {
            'kind of head': head.prefix,
            'anchors per cell': getattr(head.head, 'num_base_priors', 1),
            'classes': head.head.cls_out_channels,
            'width of the towers': head.head.feat_channels,
        }
        for head in (student, teacher)
    )
    if projected:
        student_shape.pop('width of the towers')
    cures = {
        'kind of head': "choose a teacher whose head is of the student's kind, "
        f'{type(student.head).__name__}',
        'anchors per cell': "give the student the teacher's anchors, "
        'model.student.bbox_head.anchor_generator',
        'classes': "choose a teacher that was trained on the student's classes",
        'width of the towers': f"set {where}.projection=dict(type='ConvConnector', "
        f'in_channels={student.head.feat_channels}, '
        f'out_channels={teacher.head.feat_channels})',
    }
    for key, value in student_shape.items():
        if value != teacher_shape[key]:
            raise ValueError(
                f'model.student.bbox_head: {key}: {value!r}, the teacher has '
                f'{teacher_shape[key]!r}; CrossKD needs two heads of one shape: '
                f'{cures[key]}, or take a loss on the neck'
            )
