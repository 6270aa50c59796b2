"""Losses between crossed and own predictions of the teacher (CrossKD, 2306.11369)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.targets import DenseTargets, flatten_predictions
from kdtoolbox.losses.distributions import check_distributions
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_predictions
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""Added to every divisor, as mmdet's weighted losses do: the float32 epsilon."""


def quality_bce_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
) -> Tensor:
    r"""Quality focal loss towards the teacher's probabilities.

    .. math:: \frac{1}{a} \sum_{n, k} w_n \, |\sigma(s) - \sigma(t)| \,
        BCE(s, \sigma(t))

    The gradient flows through the focal factor too, as in the authors' code.

    Args:
        student: Logits (N, M, K).
        teacher: The same shape; receives no gradient.
        weight: Weight (N, M) of each prediction.
        avg_factor: The divisor a.

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> logits = torch.zeros(1, 2, 3)
        >>> quality_bce_loss(logits, logits, torch.ones(1, 2), 1)
        tensor(0.)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        goal = teacher.sigmoid()
        bce = functional.binary_cross_entropy_with_logits(
            student, goal, reduction='none'
        )
        rows = ((student.sigmoid() - goal).abs() * bce).sum(-1)
        return (rows * weight).sum() / (avg_factor + EPS)


def distribution_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    r"""Weighted KL divergence of the distributions of the four sides, bins summed.

    .. math:: \frac{1}{4} \sum_{n, side} w_n \, KL(softmax(t) \,\|\, softmax(s))

    Args:
        student: Logits (N, M, 4 * bins).
        teacher: The same shape; receives no gradient.
        weight: Weight (N, M) of each prediction.

    Returns:
        A scalar, float32 or wider. It is not divided by the weights.

    Example:
        >>> logits = torch.zeros(1, 2, 4 * 3)
        >>> distribution_loss(logits, logits, torch.ones(1, 2))
        tensor(0.)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        shape = (*student.shape[:2], 4, -1)
        log_goal = teacher.reshape(shape).log_softmax(-1)
        log_student = student.reshape(shape).log_softmax(-1)
        rows = (log_goal.exp() * (log_goal - log_student)).sum((-1, -2))
        # mmdet's weighted losses add epsilon to the 4 as well.
        return (rows * weight).sum() / (4 + EPS)


def box_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, mode: Literal['giou', 'iou']
) -> Tensor:
    """Weighted sum of 1 - GIoU, or of -log IoU, of pairs of boxes.

    Args:
        student: Boxes (N, M, 4) as (x1, y1, x2, y2).
        teacher: The same shape; receives no gradient.
        weight: Weight (N, M) of each pair.
        mode: 'giou', or 'iou' for -log(max(IoU, 1e-6)).

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])
        >>> box_loss(boxes, boxes + 1, torch.ones(1, 1), 'iou')  # log(7)
        tensor(1.9459)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        # As in the authors' code: GIoU guards its unions by another epsilon.
        iou, union = _iou(student, teacher, 1e-6 if mode == 'iou' else 1e-7)
        if mode == 'iou':
            return (-iou.clamp(min=1e-6).log() * weight).sum()
        first = torch.minimum(student[..., :2], teacher[..., :2])
        last = torch.maximum(student[..., 2:], teacher[..., 2:])
        hull = _area(torch.cat([first, last], -1)).clamp(min=1e-7)
        return ((1 - iou + (hull - union) / hull) * weight).sum()


def _iou(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    first = torch.maximum(a[..., :2], b[..., :2])
    last = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (last - first).clamp(min=0).prod(-1)
    union = (_area(a) + _area(b) - overlap).clamp(min=eps)
    return overlap / union, union


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def _confidence(
    teacher_cls: Tensor, targets: DenseTargets, level: int, like: Tensor
) -> Tensor:
    """Return the teacher's largest probability (N, M), 0 where the label is ignored."""
    rows = flatten_predictions(teacher_cls.detach(), targets.num_classes)
    score = rows.to(torch.promote_types(like.dtype, torch.float32)).amax(-1).sigmoid()
    return score.where(targets.label_weights[level] != 0, 0)


@MODELS.register_module()
class CrossKDClsLoss(nn.Module):
    """Classification of crossed predictions at all locations. See `quality_bce_loss`.

    Args:
        loss_weight: Factor on the loss. The paper uses 1, and 0.4 for FCOS.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> CrossKDClsLoss(loss_weight=0.4).loss_weight
        0.4
    """

    reads_classes = True

    examples = (Example('dense class logits'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('CrossKDClsLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, level: int, targets: DenseTargets
    ) -> Tensor:
        """Compare logit maps (N, A * K, H, W); see `DenseTargets` for the divisor."""
        check_predictions(student, teacher)
        loss = quality_bce_loss(
            flatten_predictions(student, targets.num_classes),
            flatten_predictions(teacher, targets.num_classes),
            targets.label_weights[level],
            targets.avg_factor,
        )
        return self.loss_weight * loss


@MODELS.register_module()
class CrossKDDistributionLoss(nn.Module):
    """Box distributions of GFL, weighted by the teacher's confidence.

    See `distribution_loss`; its sum over the levels is divided by the sum of the
    weights over all levels.

    Deviation: without any weight the loss is 0, where the authors' code gives NaN.

    Args:
        loss_weight: Factor on the loss. The paper uses 4.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> CrossKDDistributionLoss().loss_weight
        4.0
    """

    per_level = False

    examples = (
        Example('box distributions', wires=dict(teacher_cls='dense class logits')),
    )

    def __init__(self, loss_weight: float = 4.0) -> None:
        super().__init__()
        check_at_least('CrossKDDistributionLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        teacher_cls: list[Tensor],
        targets: DenseTargets,
    ) -> Tensor:
        """Compare maps (N, 4 * bins, H, W) of all levels, with the teacher's logits."""
        total = divisor = student[0].new_zeros((), dtype=torch.float)
        levels = zip(student, teacher, teacher_cls, strict=True)
        for level, (mine, theirs, logits) in enumerate(levels):
            check_distributions(mine, theirs, level, targets)
            weight = _confidence(logits, targets, level, mine)
            size = mine.shape[1]
            mine = flatten_predictions(mine, size)
            theirs = flatten_predictions(theirs, size)
            total = total + distribution_loss(mine, theirs, weight)
            divisor = divisor + weight.sum()
        return self.loss_weight * total / divisor.where(divisor > 0, 1)


@MODELS.register_module()
class CrossKDBoxLoss(nn.Module):
    """Boxes of RetinaNet, ATSS and FCOS, weighted by the confidence. See `box_loss`.

    Args:
        mode: 'giou' for RetinaNet and ATSS, 'iou' for FCOS.
        loss_weight: Factor on the loss. The paper uses 1, and 0.75 for FCOS.

    Raises:
        ValueError: If ``mode`` is another.

    Example:
        >>> CrossKDBoxLoss(mode='iou', loss_weight=0.75).mode
        'iou'
    """

    examples = (Example('dense boxes', wires=dict(teacher_cls='dense class logits')),)

    def __init__(
        self, mode: Literal['giou', 'iou'] = 'giou', loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_at_least('CrossKDBoxLoss', 0, loss_weight=loss_weight)
        if mode not in ('giou', 'iou'):
            raise ValueError(f"mode={mode!r}; set mode='giou' or mode='iou'")
        self.mode = mode
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        teacher_cls: Tensor,
        level: int,
        targets: DenseTargets,
    ) -> Tensor:
        """Compare raw box maps (N, A * 4, H, W), with the teacher's logits."""
        check_predictions(student, teacher)
        weight = _confidence(teacher_cls, targets, level, student)
        # Boxes of an image of 1000 pixels lose their digits in half precision.
        with torch.autocast(student.device.type, enabled=False):
            mine, theirs = (
                targets.decode(level, flatten_predictions(x, 4))
                for x in at_least_float32(student, teacher)
            )
        loss = box_loss(mine, theirs, weight, self.mode)
        return self.loss_weight * loss / (targets.avg_factor + EPS)


@MODELS.register_module()
class CrossKDCenternessLoss(nn.Module):
    """Binary cross entropy of the centerness at the positives of ATSS.

    The value at equality is the teacher's entropy, with no gradient.

    Args:
        loss_weight: Factor on the loss. The paper uses 1.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> CrossKDCenternessLoss().loss_weight
        1.0
    """

    examples = (Example('centerness'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('CrossKDCenternessLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, level: int, targets: DenseTargets
    ) -> Tensor:
        """Compare logit maps (N, A, H, W)."""
        check_predictions(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            mine, theirs = (
                flatten_predictions(x, 1)[..., 0]
                for x in at_least_float32(student, teacher)
            )
            loss = functional.binary_cross_entropy_with_logits(
                mine, theirs.sigmoid(), reduction='none'
            )
            loss = (loss * targets.positives(level)).sum()
        return self.loss_weight * loss / (targets.avg_factor + EPS)
