"""Box heads of two-stage detectors: check, observe and run them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kdtoolbox.distillers.building import Wires
from kdtoolbox.recorders import Records

RESPONSES = ('roi_cls', 'roi_reg')
"""Names of the wires of a box head's outputs."""


@contextmanager
def record_rois(box_head: Any) -> Iterator[Records]:
    """Record the arguments of the box head's ``loss`` while the block runs.

    A recorder on ``loss_cls`` would fail if no RoI was sampled: it is not called then.

    Yields:
        Logits ``roi_cls``, deltas ``roi_reg`` class by class, ``rois`` (R, 5) and
        ``roi_labels`` (R,), of one level each.
    """
    records: Records = {}
    compute = box_head.loss

    def observed(
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        records['roi_cls'] = [cls_score]
        records['roi_reg'] = [_by_class(box_head, bbox_pred)]
        records['rois'] = [rois]
        records['roi_labels'] = [labels]
        return compute(cls_score, bbox_pred, rois, labels, *args, **kwargs)

    box_head.loss = observed
    try:
        yield records
    finally:
        del box_head.loss


def levels_of(detector: Any) -> str:
    """Return the path of the module whose output the RoI extractor reads."""
    return 'neck' if detector.with_neck else 'backbone'


def read_levels(detector: Any, levels: Sequence[Tensor]) -> list[Tensor]:
    """Return the levels that the RoI extractor reads, without a pooled P6."""
    return list(levels[: detector.roi_head.bbox_roi_extractor.num_inputs])


def ask_box_head(
    name: str, detector: Any, levels: Sequence[Tensor], rois: Tensor
) -> Wires:
    """Run a detector's box head on RoIs and return its outputs as wires.

    Args:
        name: The first part of the wires' names.
        detector: A detector that `check_detectors` accepts.
        levels: Features (N, C, H, W) that its RoI extractor reads.
        rois: Image index and corners (R, 5), in pixels of the padded input of both
            models.
    """
    roi_head = detector.roi_head
    answer = roi_head._bbox_forward(tuple(levels), rois)
    return {
        f'{name}.roi_cls': [answer['cls_score']],
        f'{name}.roi_reg': [_by_class(roi_head.bbox_head, answer['bbox_pred'])],
    }


def _by_class(box_head: Any, deltas: Tensor) -> Tensor:
    # Losses derive the label of the background from the number of columns.
    if box_head.reg_class_agnostic:
        return deltas.repeat(1, box_head.num_classes)
    return deltas


def check_detectors(student: Any, teacher: Any) -> None:
    """Raise ValueError for detectors whose box heads cannot be run or compared."""
    _check_head(student, 'model.student')
    _check_head(teacher, 'model.teacher')
    _check_pair(student.roi_head.bbox_head, teacher.roi_head.bbox_head)


def _check_head(model: Any, where: str) -> None:
    """Raise ValueError for detectors that sample or train RoIs in their own way."""
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
                f'as in Faster and Mask R-CNN, got {kinds}, where `{method}` differs '
                f'from that of {standard.__name__}. Cascade, double, dynamic, grid and '
                'PISA heads are not supported: choose another detector, or take losses '
                'on the neck without this source'
            )
    if not (box_head.with_cls and box_head.with_reg) or box_head.custom_cls_channels:
        raise ValueError(
            f'{where}.roi_head.bbox_head: expected box deltas and one logit '
            'for each class and the background; with_cls=False, with_reg=False and a '
            'loss_cls with channels of its own, such as SeesawLoss, are not supported: '
            'choose another head, or take losses on the neck without this source'
        )


def _check_pair(student: Any, teacher: Any) -> None:
    student_values, teacher_values = (
        {
            'num_classes': head.num_classes,
            'bbox_coder': type(head.bbox_coder).__name__,
            'bbox_coder.target_means': _numbers(head.bbox_coder, 'means'),
            'bbox_coder.target_stds': _numbers(head.bbox_coder, 'stds'),
        }
        for head in (student, teacher)
    )
    for key in student_values:
        if student_values[key] != teacher_values[key]:
            raise ValueError(
                f'model.student.roi_head.bbox_head: {key}: {student_values[key]!r}, '
                f'the teacher has {teacher_values[key]!r}; logits and deltas are '
                'compared one by one. Choose a teacher of the same classes and '
                'box coder'
            )


def _numbers(coder: Any, name: str) -> tuple[float, ...]:
    return tuple(float(number) for number in getattr(coder, name, ()))
