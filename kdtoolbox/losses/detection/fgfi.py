"""Fine-grained feature imitation (FGFI, arXiv:1906.03609)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least, check_share
from kdtoolbox.losses.detection.defeat import (
    decoupled_error,
    pyramid_levels,
    squared_distances,
)
from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.registry import MODELS

POINT_ANCHOR = 8
"""Side of the anchor around a point, in strides of its level."""

BOXES_AT_ONCE = 16
"""Boxes that meet all anchors at a time, which bounds the memory of crowded images."""


def imitation_regions(
    anchors: list[Tensor], boxes: Tensor, exist: Tensor, threshold: float = 0.5
) -> list[Tensor]:
    r"""Select the anchors that overlap a box nearly as well as its best anchor does.

    .. math:: IoU(a, g) > \psi \max_{a'} IoU(a', g)

    The maximum runs over the anchors of all levels. A box that overlaps none selects
    none.

    Args:
        anchors: For each level (N, M_l, 4) as (x1, y1, x2, y2) in pixels.
        boxes: Ground truth (N, G, 4), padded.
        exist: Which of the boxes are there (N, G).
        threshold: The share psi.

    Returns:
        For each level the mask (N, M_l) of those that any box selects.

    Example:
        >>> anchors = [torch.tensor([[[0.0, 0.0, 8.0, 8.0], [6.0, 0.0, 14.0, 8.0]]])]
        >>> boxes, exist = torch.tensor([[[0.0, 0.0, 9.0, 8.0]]]), torch.ones(1, 1) > 0
        >>> imitation_regions(anchors, boxes, exist)
        [tensor([[ True, False]])]
    """
    every = torch.cat(anchors, dim=1)
    selected = torch.zeros_like(every[..., 0], dtype=torch.bool)
    parts = [x.split(BOXES_AT_ONCE, dim=1) for x in (boxes.to(every.dtype), exist)]
    for some, there in zip(*parts, strict=True):
        iou = _iou(some, every).where(there[..., None], 0)
        selected |= (iou > threshold * iou.amax(2, keepdim=True)).any(1)
    return list(selected.split([level.shape[1] for level in anchors], dim=1))


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU (N, G, M) of boxes (N, G, 4) and anchors (N, M, 4)."""
    a, b = boxes[:, :, None].unbind(-1), anchors[:, None].unbind(-1)
    width, height = (
        (torch.minimum(a[i + 2], b[i + 2]) - torch.maximum(a[i], b[i])).clamp(min=0)
        for i in (0, 1)
    )
    overlap = width * height
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-6)


def imitation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    r"""Average the squared errors, channels summed, over the masked positions.

    .. math:: \frac{\sum_{l,n,h,w} M \sum_c (S - T)^2}{2 \sum_{l,n,h,w} M}

    The authors' formula, which knows one map. Here one count divides all levels, so
    that each position weighs the same wherever it lies.

    Args:
        student: For each level features (N, C, H, W).
        teacher: The same shapes; receives no gradient.
        masks: For each level (N, H, W), boolean.

    Returns:
        A scalar, float32 or wider; 0 if the masks are empty.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> maps, mask = torch.ones(1, 3, 2, 2), torch.eye(2)[None] > 0
        >>> imitation_loss([maps], [3 * maps * mask], [mask])
        tensor(6.)
    """
    sums = [
        (squared_distances(*pair) * mask).sum()
        for *pair, mask in zip(student, teacher, masks, strict=True)
    ]
    count = torch.stack([mask.sum() for mask in masks]).sum()
    return torch.stack(sums).sum() / (2 * count.clamp(min=1))


@MODELS.register_module()
class FGFILoss(nn.Module):
    """FGFI on all levels of a dense head; see `imitation_regions`, `imitation_loss`.

    A position of a map imitates if any of its anchors is selected. The anchors are
    those of the student's head.

    Deviation: for heads of points, which the paper does not treat, the toolbox takes
    one square anchor of 8 strides around each.

    Deviation: the authors distil the one map under the RPN of Faster R-CNN. On a
    pyramid the anchors of all levels compete for a box.

    The authors leave the loss off for 400 iterations: see ``LossWeightHook``.

    Args:
        threshold: The least IoU as a share of the largest of a box.
        legacy_defeat: Compute what the port in DeFeat's repository does: each box meets
            the anchors of one level, that of its size; the errors are averaged over the
            channels too, level by level, and then over the levels. Its values are far
            smaller, and its weights larger.
        loss_weight: Factor on the loss. The authors use 0.01.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> FGFILoss().loss_weight
        0.01
    """

    per_level = False

    def __init__(
        self,
        threshold: float = 0.5,
        legacy_defeat: bool = False,
        loss_weight: float = 0.01,
    ) -> None:
        super().__init__()
        check_share('FGFILoss', one=False, threshold=threshold)
        check_at_least('FGFILoss', 0, loss_weight=loss_weight)
        self.threshold = threshold
        self.legacy_defeat = legacy_defeat
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        data_samples: Sequence[Any],
        targets: DenseTargets,
    ) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W), a list over the levels.

        Raises:
            ValueError: If the maps are not those of the head's anchors.
        """
        anchors = _anchors_of(targets)
        boxes, _, exist = pad_boxes(data_samples, anchors[0].device)
        if self.legacy_defeat:
            regions = self._legacy_regions(anchors, boxes, exist)
        else:
            regions = imitation_regions(anchors, boxes, exist, self.threshold)
        masks = _positions(regions, student)
        if self.legacy_defeat:
            levels = zip(student, teacher, masks, strict=True)
            terms = [decoupled_error(*level)[0] for level in levels]
            return self.loss_weight * torch.stack(terms).mean()
        return self.loss_weight * imitation_loss(student, teacher, masks)

    def _legacy_regions(
        self, anchors: list[Tensor], boxes: Tensor, exist: Tensor
    ) -> list[Tensor]:
        # The port counts the last pixel of a box in its size, though not in the IoU.
        sizes = boxes + boxes.new_tensor([0, 0, 1, 1])
        belongs = pyramid_levels(sizes, len(anchors))
        regions = []
        for index, level in enumerate(anchors):
            there = exist & (belongs == index)
            regions += imitation_regions([level], boxes, there, self.threshold)
        return regions


def _anchors_of(targets: DenseTargets) -> list[Tensor]:
    """Return the anchors (N, M_l, 4) of each level, made up around points."""
    if targets.priors[0].shape[-1] == 4:
        return targets.priors
    halves = [POINT_ANCHOR * stride / 2 for stride in targets.strides]
    return [
        torch.cat([points - half, points + half], dim=-1)
        for points, half in zip(targets.priors, halves, strict=True)
    ]


def _positions(regions: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
    """Return for each level the mask (N, H, W) of the positions of anchors (N, M_l)."""
    if len(regions) != len(maps):
        raise ValueError(
            f'the student has anchors on {len(regions)} levels, the wires have '
            f"{len(maps)}; record all of them, such as recorders.student.fpn='neck'"
        )
    masks = []
    for level, (region, features) in enumerate(zip(regions, maps, strict=True)):
        height, width = features.shape[2:]
        if region.shape[1] % (height * width):
            raise ValueError(
                f'level {level}: the student has {region.shape[1]} anchors, which is '
                f'no multiple of {height} x {width} positions; name wires of the maps '
                'that its dense head reads, not resized'
            )
        masks.append(region.reshape(len(region), height, width, -1).any(-1))
    return masks
