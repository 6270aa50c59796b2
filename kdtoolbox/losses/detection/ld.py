"""Localization distillation (LD, arXiv:2102.12252)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.boxes import (
    box_ious,
    center_distances,
    enclosing_diagonals,
)
from kdtoolbox.losses.detection.targets import (
    DenseTargets,
    flatten_predictions,
    pad_boxes,
)
from kdtoolbox.losses.distributions import check_distributions
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_predictions
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

CANDIDATES = 9
"""Number of anchors per level and box from which ATSS computes its threshold."""

REGION = 0.25
"""Lower bound of the valuable region, as a fraction of the ATSS threshold."""


@full_precision
def mean_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    r"""Compute the KL divergence of softened distributions, averaged over the bins.

    .. math:: \tau^2 \, mean_k(t_k (\log t_k - \log s_k)), \quad
        t = softmax(T / \tau), \; s = softmax(S / \tau)

    The usual divergence sums over the bins; the authors' code takes the mean.

    Args:
        student: Logits (..., bins).
        teacher: The same shape; receives no gradient.
        tau: Temperature.

    Returns:
        The divergence of each row, float32 or wider.

    Example:
        >>> mean_kl(torch.zeros(3, 5), torch.zeros(3, 5), tau=10.0)
        tensor([0., 0., 0.])
    """
    log_goal = (teacher / tau).log_softmax(-1)
    log_student = (student / tau).log_softmax(-1)
    return tau**2 * (log_goal.exp() * (log_goal - log_student)).mean(-1)


def localization_distance(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Compute `mean_kl`, summed over the four sides of each box.

    Args:
        student: Maps (N, 4 * bins, H, W) of logits.
        teacher: The same shape; receives no gradient.
        tau: Temperature.

    Returns:
        The distances (N, H * W).

    Example:
        >>> maps = torch.zeros(2, 4 * 5, 3, 2)
        >>> tuple(localization_distance(maps, maps, tau=10.0).shape)
        (2, 6)
    """
    count, channels = student.shape[:2]
    rows = [
        flatten_predictions(x, channels).reshape(count, -1, 4, channels // 4)
        for x in (student, teacher)
    ]
    return mean_kl(rows[0], rows[1], tau).sum(-1)


def valuable_region(
    anchors: list[Tensor], boxes: Tensor, exist: Tensor
) -> list[Tensor]:
    r"""Compute the weights of the anchors of the valuable localization region.

    For each box, :math:`\alpha` is the threshold of ATSS: mean plus standard deviation
    of the IoUs of the 9 anchors per level that are nearest to its centre. An anchor
    with :math:`\alpha / 4 \le DIoU < \alpha` weighs its DIoU; with several such boxes,
    the maximum. All other anchors weigh 0. The caller has to exclude positive anchors.

    Args:
        anchors: For each level (N, M_l, 4) as (x1, y1, x2, y2) in pixels.
        boxes: Ground truth (N, G, 4), padded.
        exist: Mask (N, G) of the boxes that are not padding.

    Returns:
        For each level the weights (N, M_l).

    Example:
        >>> anchors = [torch.tensor([[[0.0, 0.0, 8.0, 8.0], [6.0, 0.0, 14.0, 8.0]]])]
        >>> boxes, exist = torch.tensor([[[0.0, 0.0, 9.0, 8.0]]]), torch.ones(1, 1) > 0
        >>> [weights] = valuable_region(anchors, boxes, exist)
        >>> weights
        tensor([[0.8872, 0.0000]])
    """
    sizes = [level.shape[1] for level in anchors]
    if not boxes.shape[1]:
        return [level.new_zeros(level.shape[:2]) for level in anchors]
    pairs = torch.cat(anchors, dim=1)[:, :, None], boxes[:, None].to(anchors[0].dtype)
    iou, distance = box_ious(*pairs), center_distances(*pairs)
    diou = iou - distance / enclosing_diagonals(*pairs).clamp(min=1e-6)
    candidates = torch.cat(
        [
            overlap.gather(1, near.topk(min(CANDIDATES, size), 1, largest=False)[1])
            for overlap, near, size in zip(
                iou.split(sizes, 1), distance.split(sizes, 1), sizes, strict=True
            )
        ],
        dim=1,
    )
    threshold = candidates.mean(1, keepdim=True)
    if candidates.shape[1] > 1:
        threshold = threshold + candidates.std(1, keepdim=True)
    inside = (diou >= REGION * threshold) & (diou < threshold) & exist[:, None]
    return list(diou.where(inside, 0).amax(2).split(sizes, 1))


@MODELS.register_module()
class LDLoss(nn.Module):
    """Compute the LD loss of box distributions at positives and in the valuable region.

    The term ``main`` is a sum over the positives, weighted by the student's confidence
    (detached) and divided by 4. The term ``region`` is a sum over `valuable_region`,
    divided by 16. As in the authors' code, neither is divided by a number of boxes.

    Unverified: the weight inside the region is the DIoU, not the IoU.

    Args:
        tau: Temperature.
        main_weight: Factor on ``main``.
        region_weight: Factor on ``region``.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> LDLoss(region_weight=0.0).main_weight
        0.25
    """

    per_level = False

    examples = (
        Example('box distributions', wires=dict(student_cls='dense class logits')),
    )

    def __init__(
        self,
        tau: float = 10.0,
        main_weight: float = 0.25,
        region_weight: float = 0.25,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'LDLoss',
            0,
            main_weight=main_weight,
            region_weight=region_weight,
            loss_weight=loss_weight,
        )
        self.tau = check_tau('LDLoss', tau)
        self.main_weight = main_weight
        self.region_weight = region_weight
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        student_cls: list[Tensor],
        data_samples: list,
        targets: DenseTargets,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of maps (N, 4 * bins, H, W) of all levels.

        Raises:
            ValueError: If the head has points instead of anchors, if it predicts no
                distributions, or if student and teacher differ in their bins.
        """
        if targets.priors[0].shape[-1] != 4:
            raise ValueError(
                "the student's head has points instead of anchors; LD needs anchors "
                'and box distributions, such as those of GFLHead'
            )
        boxes, _, exist = pad_boxes(data_samples, targets.priors[0].device)
        regions = valuable_region(targets.priors, boxes, exist)
        main = region = student[0].new_zeros((), dtype=torch.float)
        levels = zip(student, teacher, student_cls, regions, strict=True)
        for level, (student_map, teacher_map, logits, weight) in enumerate(levels):
            check_distributions(student_map, teacher_map, level, targets)
            distance = localization_distance(student_map, teacher_map, self.tau)
            score = flatten_predictions(logits.detach(), targets.num_classes)
            score = score.to(distance.dtype).amax(-1).sigmoid()
            positive = targets.positives(level)
            main = main + (distance * score * positive).sum() / 4
            region = region + (distance * weight * ~positive).sum() / 16
        return dict(
            main=self.loss_weight * self.main_weight * main,
            region=self.loss_weight * self.region_weight * region,
        )


@MODELS.register_module()
class LDClsLoss(nn.Module):
    """Compute the KL divergence of the class logits at positives, level by level.

    The loss of a level is the mean over its positives.

    Args:
        tau: Temperature.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> LDClsLoss().loss_weight
        10.0
    """

    reads_classes = True

    examples = (Example('dense class logits'),)

    def __init__(self, tau: float = 2.0, loss_weight: float = 10.0) -> None:
        super().__init__()
        check_at_least('LDClsLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('LDClsLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, level: int, targets: DenseTargets
    ) -> Tensor:
        """Return the weighted loss of logit maps (N, A * K, H, W).

        Raises:
            ValueError: If the shapes differ or there is a single class.
        """
        check_predictions(student, teacher)
        if targets.num_classes < 2:
            raise ValueError(
                'LDClsLoss compares softmaxes over the classes, and the student has '
                'num_classes=1: the softmax of one class is always 1 and trains '
                "nothing; leave this loss out or take type='kdtoolbox.KDLoss' with "
                'use_sigmoid=True'
            )
        student, teacher = (
            flatten_predictions(x, targets.num_classes) for x in (student, teacher)
        )
        positive = targets.positives(level)
        total = (mean_kl(student, teacher, self.tau) * positive).sum()
        return self.loss_weight * total / positive.sum().clamp(min=1)
