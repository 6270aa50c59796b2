"""Losses of cross-head distillation (CrossKD, arXiv:2306.11369)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.boxes import box_ious, giou_distances
from kdtoolbox.losses.detection.targets import DenseTargets, flatten_predictions
from kdtoolbox.losses.distributions import check_distributions
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_predictions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""The float32 epsilon, which mmdet's weighted losses add to every divisor."""


@full_precision
def quality_bce_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
) -> Tensor:
    r"""Compute the quality focal loss with the teacher's probabilities as targets.

    .. math:: \frac{1}{a} \sum_{n, k} w_n \, |\sigma(s) - \sigma(t)| \,
        BCE(s, \sigma(t))

    As in the authors' code, the gradient also flows through the focal factor.

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
    goal = teacher.sigmoid()
    bce = functional.binary_cross_entropy_with_logits(student, goal, reduction='none')
    rows = ((student.sigmoid() - goal).abs() * bce).sum(-1)
    return (rows * weight).sum() / avg_factor


@full_precision
def distribution_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    r"""Compute the weighted KL divergence of box distributions.

    The bins are summed, and the four sides are averaged:

    .. math:: \frac{1}{4} \sum_{n, side} w_n \, KL(softmax(t) \,\|\, softmax(s))

    Args:
        student: Logits (N, M, 4 * bins).
        teacher: The same shape; receives no gradient.
        weight: Weight (N, M) of each prediction.

    Returns:
        A scalar, float32 or wider. It is not divided by the sum of the weights.

    Example:
        >>> logits = torch.zeros(1, 2, 4 * 3)
        >>> distribution_loss(logits, logits, torch.ones(1, 2))
        tensor(0.)
    """
    shape = (*student.shape[:2], 4, -1)
    log_goal = teacher.reshape(shape).log_softmax(-1)
    log_student = student.reshape(shape).log_softmax(-1)
    rows = (log_goal.exp() * (log_goal - log_student)).sum((-1, -2))
    # mmdet's weighted losses add epsilon to the 4, too.
    return (rows * weight).sum() / (4 + EPS)


@full_precision
def box_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, mode: Literal['giou', 'iou']
) -> Tensor:
    """Compute the weighted sum of 1 - GIoU, or of -log IoU, of pairs of boxes.

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
    # The two epsilons differ in the authors' code.
    if mode == 'iou':
        iou = box_ious(student, teacher, eps=1e-6).clamp(min=1e-6)
        return (-iou.log() * weight).sum()
    return (giou_distances(student, teacher, eps=1e-7) * weight).sum()


@full_precision
def centerness_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
) -> Tensor:
    """Compute the weighted binary cross-entropy of centerness logits.

    For equal logits the value is the teacher's entropy and the gradient is 0.

    Args:
        student: Logits (N, M).
        teacher: The same shape; receives no gradient.
        weight: Weight (N, M) of each prediction.
        avg_factor: The divisor.

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> centerness_loss(logits, logits, torch.ones(1, 2), 2)
        tensor(0.6931)
    """
    loss = functional.binary_cross_entropy_with_logits(
        student, teacher.sigmoid(), reduction='none'
    )
    return (loss * weight).sum() / avg_factor


@full_precision
def _decode(raw: Tensor, level: int, targets: DenseTargets) -> Tensor:
    """Return the boxes (N, M, 4) of a raw map.

    In half precision, coordinates of up to 1000 pixels would lose their last digits.
    """
    return targets.decode(level, flatten_predictions(raw, 4))


@full_precision
def _confidence(teacher_cls: Tensor, targets: DenseTargets, level: int) -> Tensor:
    """Return the teacher's largest probability (N, M), 0 where the label is ignored."""
    rows = flatten_predictions(teacher_cls, targets.num_classes)
    score = rows.amax(-1).sigmoid()
    return score.where(targets.label_weights[level] != 0, 0)


@MODELS.register_module()
class CrossKDClsLoss(nn.Module):
    """Compute the CrossKD loss of class logits. See `quality_bce_loss`.

    Args:
        loss_weight: Factor on the loss. The paper uses 1, and 0.4 for FCOS.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

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
        """Return the weighted loss of logit maps (N, A * K, H, W)."""
        check_predictions(student, teacher)
        loss = quality_bce_loss(
            flatten_predictions(student, targets.num_classes),
            flatten_predictions(teacher, targets.num_classes),
            targets.label_weights[level],
            targets.avg_factor + EPS,
        )
        return self.loss_weight * loss


@MODELS.register_module()
class CrossKDDistributionLoss(nn.Module):
    """Compute the CrossKD loss of the box distributions of GFL heads.

    `distribution_loss`, weighted by the teacher's confidence, is summed over the levels
    and divided by the sum of the weights of all levels.

    Deviation: if all weights are 0 the loss is 0; the authors' code gives NaN.

    Args:
        loss_weight: Factor on the loss. The paper uses 4.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

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
        """Return the weighted loss of maps (N, 4 * bins, H, W) of all levels."""
        total = divisor = student[0].new_zeros((), dtype=torch.float)
        levels = zip(student, teacher, teacher_cls, strict=True)
        for level, (student_map, teacher_map, logits) in enumerate(levels):
            check_distributions(student_map, teacher_map, level, targets)
            weight = _confidence(logits, targets, level)
            size = student_map.shape[1]
            found, goal = (
                flatten_predictions(x, size) for x in (student_map, teacher_map)
            )
            total = total + distribution_loss(found, goal, weight)
            divisor = divisor + weight.sum()
        return self.loss_weight * total / divisor.where(divisor > 0, 1)


@MODELS.register_module()
class CrossKDBoxLoss(nn.Module):
    """Compute the CrossKD loss of boxes, weighted by the teacher's confidence.

    For RetinaNet, ATSS and FCOS. See `box_loss`.

    Args:
        mode: 'giou' for RetinaNet and ATSS, 'iou' for FCOS.
        loss_weight: Factor on the loss. The paper uses 1, and 0.75 for FCOS.

    Raises:
        ValueError: If `mode` is neither 'giou' nor 'iou'.

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
        """Return the weighted loss of raw box maps (N, A * 4, H, W)."""
        check_predictions(student, teacher)
        weight = _confidence(teacher_cls, targets, level)
        boxes, goals = (_decode(raw, level, targets) for raw in (student, teacher))
        loss = box_loss(boxes, goals, weight, self.mode)
        return self.loss_weight * loss / (targets.avg_factor + EPS)


@MODELS.register_module()
class CrossKDCenternessLoss(nn.Module):
    """Compute the CrossKD loss of the centerness at positives. See `centerness_loss`.

    Args:
        loss_weight: Factor on the loss. The paper uses 1.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

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
        """Return the weighted loss of logit maps (N, A, H, W)."""
        check_predictions(student, teacher)
        loss = centerness_loss(
            flatten_predictions(student, 1)[..., 0],
            flatten_predictions(teacher, 1)[..., 0],
            targets.positives(level),
            targets.avg_factor + EPS,
        )
        return self.loss_weight * loss
