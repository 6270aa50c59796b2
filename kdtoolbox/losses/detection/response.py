"""Responses of two-stage detectors: box deltas of RoIs, objectness of anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import SAME_CLASSES, check_predictions
from kdtoolbox.losses.logits.class_logits import check_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def roi_regression_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    r"""Compute the smooth L1 loss of the box deltas of the positive RoIs.

    .. math:: \frac{1}{\max(P, 1)} \sum_{r: y_r < K} \sum_{i=1}^{4}
        SmoothL1(S_{r, y_r, i} - T_{r, y_r, i})

    P is the number of positives: RoIs whose label is not the background K. SmoothL1
    has beta = 1. Only the four deltas of the true class count.

    Unverified: a simple form of the response distillation of Chen et al. (NIPS 2017),
    without their bound, which takes the teacher's error as a margin. No authors' code
    was compared.

    Args:
        student: Deltas (R, 4 * K), class by class.
        teacher: The same shape; receives no gradient.
        labels: The class of each RoI (R,), long; K is the background.

    Returns:
        A scalar, float32 or wider; 0 without positives.

    Raises:
        ValueError: If the deltas are not (R, 4 * K), if their shapes differ, or if the
            number of labels is not R.

    Example:
        >>> student, labels = torch.zeros(2, 8), torch.tensor([1, 2])
        >>> teacher = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0])
        >>> roi_regression_loss(student, teacher.expand(2, 8), labels)
        tensor(2.)
    """
    _check_deltas(student, teacher, labels)
    classes = student.shape[1] // 4
    positive = (labels >= 0) & (labels < classes)
    index = labels.clamp(0, classes - 1)[:, None, None].expand(-1, 1, 4)
    student, teacher = (
        x.reshape(len(x), classes, 4).gather(1, index)[:, 0] for x in (student, teacher)
    )
    rows = functional.smooth_l1_loss(student, teacher, reduction='none').sum(1)
    # Not a product: untrained deltas of background RoIs may be infinite.
    return rows.where(positive, 0).sum() / positive.sum().clamp(min=1)


@full_precision
def objectness_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    r"""Compute the binary KL divergence of the objectness of all anchors.

    .. math:: mean(BCE(\sigma(T), \sigma(S)) - H(\sigma(T)))

    The mean is taken over images, levels, anchors and positions.

    Deviation: the teacher's entropy H is subtracted from the cross-entropy. The
    gradient stays the same, and the value is 0 for equal logits.

    Deviation: all anchors count, not only those that the RPN's own loss samples. Most
    anchors are background, so the mean is far smaller and needs a larger weight.

    Unverified: a binary form of the response distillation of Chen et al. (NIPS 2017).
    No authors' code was compared.

    Args:
        student: For each level logits (N, A, H, W).
        teacher: The same shapes; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a level is not 4-D or the shapes differ.

    Example:
        >>> student, teacher = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 3.0)
        >>> objectness_loss([student, student], [teacher, student])  # its half
        tensor(0.2511)
    """
    divergences = [
        _binary_divergence(*pair) for pair in zip(student, teacher, strict=True)
    ]
    anchors = sum(level.numel() for level in student)
    return torch.stack(divergences).sum() / max(anchors, 1)


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    check_predictions(student, teacher)
    # log(1 - sigmoid(x)) would cancel where the sigmoid saturates; logsigmoid(-x) does
    # not.
    yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    return (teacher.sigmoid() * yes + (-teacher).sigmoid() * no).sum()


def _check_deltas(student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    rows = student.dim() == 2 and student.shape == teacher.shape
    if not rows or not student.shape[1] or student.shape[1] % 4:
        raise ValueError(
            f'expected box deltas (R, 4 * K) of the same RoIs and classes, got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; name those of '
            "sources=[dict(type='RoIResponses')]: student='student.roi_reg', "
            "teacher='teacher.roi_reg'. Where their classes differ, "
            f'{SAME_CLASSES}'
        )
    check_labels(labels, len(student))


@MODELS.register_module()
class RoIRegressionLoss(nn.Module):
    """Compute the loss of the box deltas of positive RoIs. See `roi_regression_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> loss = RoIRegressionLoss()
        >>> loss(torch.ones(6, 8), torch.ones(6, 8), torch.arange(6) % 3)
        tensor(0.)
    """

    reads_classes = True

    examples = (Example('RoI boxes', wires=dict(labels='RoI labels')),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('RoIRegressionLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted loss of deltas (R, 4 * K) with labels (R,)."""
        return self.loss_weight * roi_regression_loss(student, teacher, labels)


@MODELS.register_module()
class ObjectnessLoss(nn.Module):
    """Compute the loss of the RPN's objectness on all levels. See `objectness_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> loss = ObjectnessLoss()
        >>> loss([torch.ones(2, 3, 8, 8)], [torch.ones(2, 3, 8, 8)])
        tensor(0.)
    """

    per_level = False

    examples = (Example('objectness'),)

    def __init__(self, loss_weight: float = 0.5) -> None:
        super().__init__()
        check_at_least('ObjectnessLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Return the weighted loss of logits (N, A, H, W), a list over the levels."""
        return self.loss_weight * objectness_loss(student, teacher)
