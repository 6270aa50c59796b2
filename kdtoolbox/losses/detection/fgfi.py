"""Fine-grained feature imitation (FGFI, arXiv:1906.03609)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least, check_share
from kdtoolbox.losses.detection.boxes import box_ious
from kdtoolbox.losses.detection.defeat import (
    decoupled_error,
    pyramid_levels,
    squared_distances,
)
from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.registry import MODELS

POINT_ANCHOR = 8
"""Side of the square anchor around a point, in strides of its level."""

BOXES_AT_ONCE = 16
"""Number of boxes compared with all anchors at once; bounds the memory."""


def imitation_regions(
    anchors: list[Tensor], boxes: Tensor, exist: Tensor, threshold: float = 0.5
) -> list[Tensor]:
    r"""Select the anchors whose IoU with a box is close to the best IoU of that box.

    .. math:: IoU(a, g) > \psi \max_{a'} IoU(a', g)

    The maximum is taken over the anchors of all levels. A box without overlap selects
    no anchor.

    Args:
        anchors: For each level (N, M_l, 4) as (x1, y1, x2, y2) in pixels.
        boxes: Ground truth (N, G, 4), padded.
        exist: Mask (N, G) of the boxes that are not padding.
        threshold: The fraction psi of the best IoU.

    Returns:
        For each level the mask (N, M_l) of the anchors that some box selects.

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
        iou = box_ious(some[:, :, None], every[:, None]).where(there[..., None], 0)
        selected |= (iou > threshold * iou.amax(2, keepdim=True)).any(1)
    return list(selected.split([level.shape[1] for level in anchors], dim=1))


def imitation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    r"""Compute the squared error of features at the masked positions.

    .. math:: \frac{\sum_{l,n,h,w} M \sum_c (S - T)^2}{2 \sum_{l,n,h,w} M}

    The authors' formula is for one map. Here the sum over all levels is divided by the
    count of all levels, so that all positions have the same weight.

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
    """Compute the FGFI loss of all levels of a dense head.

    `imitation_regions` selects anchors of the student's head. A position counts in
    `imitation_loss` if at least one of its anchors is selected.

    Deviation: heads with points, which the paper does not cover, get one square anchor
    of 8 strides around each point.

    Deviation: the authors distil the single map below the RPN of Faster R-CNN. On a
    pyramid, the best IoU of a box is taken over the anchors of all levels.

    The authors start the loss after 400 iterations: see ``LossWeightHook``.

    Args:
        threshold: Smallest IoU of an anchor, as a fraction of the best IoU of the box.
        legacy_defeat: Compute the loss as DeFeat's repository does: each box is
            compared with the anchors of one level, chosen by its size. The errors are
            averaged over the channels and per level, and then over the levels. The
            values are far smaller, so that the weight has to be larger.
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
            ValueError: If levels or sizes of the maps do not fit the head's anchors.
        """
        masks = self.masks(student, data_samples, targets)
        if self.legacy_defeat:
            levels = zip(student, teacher, masks, strict=True)
            terms = [decoupled_error(*level)[0] for level in levels]
            return self.loss_weight * torch.stack(terms).mean()
        return self.loss_weight * imitation_loss(student, teacher, masks)

    def masks(
        self,
        maps: list[Tensor],
        data_samples: Sequence[Any],
        targets: DenseTargets,
    ) -> list[Tensor]:
        """Return for each level the mask (N, H, W) of the imitated positions.

        Args:
            maps: For each level the maps (N, C, H, W).
            data_samples: The batch's samples.
            targets: The targets of the student's head.

        Raises:
            ValueError: If levels or sizes of the maps do not fit the head's anchors.
        """
        anchors = _anchors_of(targets)
        boxes, _, exist = pad_boxes(data_samples, anchors[0].device)
        if self.legacy_defeat:
            regions = self._legacy_regions(anchors, boxes, exist)
        else:
            regions = imitation_regions(anchors, boxes, exist, self.threshold)
        return _positions(regions, maps)

    def _legacy_regions(
        self, anchors: list[Tensor], boxes: Tensor, exist: Tensor
    ) -> list[Tensor]:
        # That code adds one pixel to the size of a box, but not in the IoU.
        sizes = torch.cat([boxes[..., :2], boxes[..., 2:] + 1], -1)
        belongs = pyramid_levels(sizes, len(anchors))
        regions = []
        for index, level in enumerate(anchors):
            there = exist & (belongs == index)
            regions += imitation_regions([level], boxes, there, self.threshold)
        return regions


def _anchors_of(targets: DenseTargets) -> list[Tensor]:
    """Return the anchors (N, M_l, 4) of each level; for points, squares around them."""
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
            f'the student has anchors on {len(regions)} levels and the wires have '
            f"{len(maps)}; record all of them, such as recorders.student.fpn='neck'"
        )
    masks = []
    for level, (region, features) in enumerate(zip(regions, maps, strict=True)):
        height, width = features.shape[2:]
        if region.shape[1] % (height * width):
            raise ValueError(
                f'level {level}: the student has {region.shape[1]} anchors, which is '
                f'not a multiple of {height} x {width} positions; record the maps that '
                'its dense head reads, without a resize'
            )
        masks.append(region.reshape(len(region), height, width, -1).any(-1))
    return masks
