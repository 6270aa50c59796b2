"""Responses of two-stage detectors on the student's regions of interest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.recorders import Recorder, Records
from kdtoolbox.registry import MODELS

RESPONSES = ('roi_cls', 'roi_reg')
"""Names of the wires of what a box head says about the RoIs."""

_INTERNAL = ('roi_levels', 'rois', 'roi_labels')
"""Records that are there for the distiller alone."""


@MODELS.register_module()
class RoIDistiller(Distiller):
    """A distiller that runs the teacher's box head on the student's sampled RoIs.

    Two detectors propose and sample different RoIs, so that their box heads cannot be
    compared row by row. Here the teacher's extractor and head answer for the RoIs on
    which the student trains in this step. R RoIs of all images give the wires

    - ``student.roi_cls`` and ``teacher.roi_cls``: class logits (R, K + 1),
    - ``student.roi_reg`` and ``teacher.roi_reg``: box deltas (R, 4 * K) class by class,
      those of a class-agnostic head repeated for each class,
    - ``roi.labels``: the classes (R,) that the student learns, K for the background,

    each of one level, to which no recorder is needed. Both detectors need mmdet's
    ``StandardRoIHead`` with the same classes and the same ``bbox_coder``. Losses on the
    proposals need no more than recorders, such as ``dict(rpn_cls='rpn_head.rpn_cls')``.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        losses: As `Distiller` takes them.
        recorders: Records beside those of the RoIs.
        connectors: As `Distiller` takes them.
        init_student: As `Distiller` takes it.
        data_preprocessor: As `Distiller` takes it.

    Raises:
        ValueError: If a detector has another RoI head, the two box heads do not fit, or
            a record has a name that is used here.
    """

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> dict[str, Mapping[str, Recorder]]:
        """Return the recorders with that of the levels which the teacher's RoIs read.

        The student's RoIs are seen by `observe_student`.
        """
        check_detectors(self.student, self.teacher.model)
        check_names(recorders)
        teacher = {
            **recorders['teacher'],
            'roi_levels': levels_of(self.teacher.model),
        }
        return dict(student=recorders['student'], teacher=teacher)

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        made = {f'{side}.{name}': {side} for side in SIDES for name in RESPONSES}
        # Labels train nothing, and so are no more the student's than a teacher's wire.
        return super().wire_sides() | made | {'roi.labels': {'teacher'}}

    def observe_student(
        self, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Records]:
        """Run the student's own loss; what its box head trains on joins the records."""
        with record_rois(self.student.roi_head.bbox_head) as seen:
            task_losses, records = super().observe_student(inputs, data_samples)
        return task_losses, {**records, **seen}

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and what both box heads say about the student's RoIs."""
        wires = super().collect_wires(student, teacher)
        with torch.no_grad():
            answers = ask_box_head(
                'teacher', self.teacher.model, teacher['roi_levels'], student['rois'][0]
            )
        return wires | answers | {'roi.labels': student['roi_labels']}


@contextmanager
def record_rois(box_head: Any) -> Iterator[Records]:
    """Record what the box head's ``loss`` is given in the block.

    Not a recorder of its ``loss_cls``: that is not called when no RoI was sampled.
    """
    seen: Records = {}
    compute = box_head.loss

    def observed(
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        seen['roi_cls'] = [cls_score]
        seen['roi_reg'] = [_by_class(box_head, bbox_pred)]
        seen['rois'] = [rois]
        seen['roi_labels'] = [labels]
        return compute(cls_score, bbox_pred, rois, labels, *args, **kwargs)

    box_head.loss = observed
    try:
        yield seen
    finally:
        del box_head.loss


def levels_of(detector: Any) -> str:
    """Return the path of the module whose levels the RoIs are cut from."""
    return 'neck' if detector.with_neck else 'backbone'


def ask_box_head(
    name: str, detector: Any, levels: Sequence[Tensor], rois: Tensor
) -> Wires:
    """Return what a detector's box head says about RoIs as wires of that name.

    Args:
        name: The first part of the wires' names.
        detector: A detector that `check_detectors` lets pass.
        levels: Features (N, C, H, W), what its RoI extractor reads and any others
            behind that.
        rois: Image and corners (R, 5), in pixels of the padded input, which both sides
            share.
    """
    roi_head = detector.roi_head
    answer = roi_head._bbox_forward(tuple(levels), rois)
    return {
        f'{name}.roi_cls': [answer['cls_score']],
        f'{name}.roi_reg': [_by_class(roi_head.bbox_head, answer['bbox_pred'])],
    }


def _by_class(box_head: Any, deltas: Tensor) -> Tensor:
    # A loss on four deltas could not tell which label is the background.
    if box_head.reg_class_agnostic:
        return deltas.repeat(1, box_head.num_classes)
    return deltas


def check_names(recorders: Mapping[str, Mapping[str, Recorder]]) -> None:
    """Raise ValueError for recorders whose names the RoIs' own records have."""
    for side, named in recorders.items():
        taken = named.keys() & {*RESPONSES, *_INTERNAL}
        if taken:
            raise ValueError(
                f'model.recorders.{side}: the distiller makes {sorted(taken)} itself; '
                'choose other names'
            )


def check_detectors(student: Any, teacher: Any) -> None:
    """Raise ValueError for detectors whose box heads cannot be asked or compared."""
    _check_head(student, 'model.student')
    _check_head(teacher, 'model.teacher')
    _check_pair(student.roi_head.bbox_head, teacher.roi_head.bbox_head)


def _check_head(model: Any, where: str) -> None:
    """Refuse detectors that sample, extract or train RoIs in a way of their own."""
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead

    roi_head = getattr(model, 'roi_head', None)
    box_head: Any = getattr(roi_head, 'bbox_head', None)
    own = [
        (model, TwoStageDetector, 'loss'),
        (roi_head, StandardRoIHead, 'loss'),
        (roi_head, StandardRoIHead, 'bbox_loss'),
        (roi_head, StandardRoIHead, '_bbox_forward'),
        (box_head, BBoxHead, 'loss_and_target'),
        (box_head, BBoxHead, 'loss'),
    ]
    for part, standard, method in own:
        if getattr(type(part), method, None) is not getattr(standard, method):
            kinds = ', '.join(type(x).__name__ for x in (model, roi_head, box_head))
            raise ValueError(
                f'{where}: expected a single box head under StandardRoIHead, '
                f'as Faster and Mask R-CNN have it, got {kinds}, where `{method}` is '
                f'not that of {standard.__name__}. Cascade, double, dynamic, grid and '
                'PISA heads are not supported: choose another detector, or '
                "type='kdtoolbox.Distiller' with losses on the neck"
            )
    if not (box_head.with_cls and box_head.with_reg) or box_head.custom_cls_channels:
        raise ValueError(
            f'{where}.roi_head.bbox_head: expected box deltas and one logit '
            'for each class and the background; with_cls=False, with_reg=False and a '
            'loss_cls with channels of its own, such as SeesawLoss, are not supported: '
            "choose another head, or type='kdtoolbox.Distiller' with losses on the neck"
        )


def _check_pair(student: Any, teacher: Any) -> None:
    mine, theirs = (
        {
            'num_classes': head.num_classes,
            'bbox_coder': type(head.bbox_coder).__name__,
            'bbox_coder.target_means': _numbers(head.bbox_coder, 'means'),
            'bbox_coder.target_stds': _numbers(head.bbox_coder, 'stds'),
        }
        for head in (student, teacher)
    )
    for key in mine:
        if mine[key] != theirs[key]:
            raise ValueError(
                f'model.student.roi_head.bbox_head: {key}: {mine[key]!r}, the teacher '
                f'has {theirs[key]!r}; logits and deltas are compared one by one. '
                'Choose a teacher of the same classes and box coder'
            )


def _numbers(coder: Any, name: str) -> tuple[float, ...]:
    return tuple(float(number) for number in getattr(coder, name, ()))
