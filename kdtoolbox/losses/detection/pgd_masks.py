"""Prediction-guided distillation (PGD, arXiv:2203.05469): where it looks.

The losses are in `kdtoolbox.losses.detection.pgd`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.losses.detection.targets import (
    DenseTargets,
    flatten_predictions,
    pad_boxes,
)

JITTER = 0.1**2 / 12
"""Variance, in square pixels, of the authors' jitter: uniform, 0.1 pixels wide."""

REACH = 87.0
"""Half a squared distance beyond which exp leaves the normal numbers of float32."""


def prediction_quality(
    logits: Tensor,
    predicted: Tensor,
    boxes: Tensor,
    labels: Tensor,
    iou_exponent: float,
) -> Tensor:
    r"""Rate how well each cell predicts each object.

    .. math:: q = \sigma(z_y)^{1 - \xi} \, IoU(\hat b, b)^\xi

    with y the object's class; the largest over the predictions of a cell.

    Args:
        logits: Classification (N, A, K, P) of P cells with A predictions each.
        predicted: Their boxes (N, A, P, 4) as (x1, y1, x2, y2).
        boxes: Objects (N, G, 4).
        labels: Their classes (N, G).
        iou_exponent: The exponent of the IoU.

    Returns:
        The qualities (N, G, P).

    Example:
        >>> box = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> logits, label = torch.zeros(1, 1, 3, 1), torch.tensor([[2]])
        >>> wide = box.mul(2).reshape(1, 1, 1, 4)
        >>> prediction_quality(logits, wide, box.reshape(1, 1, 4), label, 0.5)  # 8^-1/2
        tensor([[[0.3536]]])
    """
    index = labels[:, None, :, None].expand(-1, logits.shape[1], -1, logits.shape[3])
    probability = logits.gather(2, index).to(boxes.dtype).sigmoid()
    iou = _iou(predicted[:, :, None], boxes[:, None, :, None])
    rated = probability.pow_(1 - iou_exponent).mul_(iou.pow_(iou_exponent))
    return rated.amax(1)


def _iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    left, top, right, bottom = predicted.unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    # In place: with nine anchors per cell these are the largest maps of the loss.
    width = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    height = torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0)
    overlap = width.mul_(height)
    areas = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1)
    return overlap.div_(areas.sub_(overlap).clamp_(min=1e-6))


def guidance_masks(
    boxes: Tensor, exist: Tensor, centers: Tensor, quality: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    r"""Weigh the cells by their distance from where an object is predicted best.

    A Gaussian is fitted to the centres of the best cells inside a box, by their mean
    and covariance. A cell inside the box weighs :math:`\exp(-d^2 / 2)`, with d its
    Mahalanobis distance; the largest over the boxes, 0 outside of all.

    Deviation: the authors move the best centres at random before the fit, so that a
    small box has a covariance; here the variance of these moves is added to it.
    Deviation: a weight below the normal numbers of float32 is 0 in any precision,
    because the losses divide by the number of those that are not.
    Unverified: cells outside the box, or of quality 0, take no part in the fit.

    Args:
        boxes: Objects (N, G, 4) as (x1, y1, x2, y2) in pixels, padded.
        exist: Which of the boxes are there (N, G).
        centers: Centres (N, P, 2) of the cells of all levels, in pixels.
        quality: Quality (N, G, P) of the cells for the boxes.
        topk: Number of best cells of a box.

    Returns:
        The weights (N, P), and 1 for the cells (N, P) outside of all boxes, 0 inside.

    Example:
        >>> boxes, exist = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]), torch.ones(1, 1) > 0
        >>> centers = torch.tensor([[[0.0, 4.0], [4.0, 4.0], [8.0, 4.0], [12.0, 4.0]]])
        >>> quality = torch.tensor([[[0.9, 0.8, 0.1, 0.0]]])
        >>> guidance_masks(boxes, exist, centers, quality, topk=2)[0]  # mean 2, var 4
        tensor([[0.6066, 0.6066, 0.0111, 0.0000]])
    """
    x, y = centers[:, None].unbind(-1)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(-1)
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & exist[..., None]
    if not boxes.shape[1]:
        return centers.new_zeros(centers.shape[:2]), centers.new_ones(centers.shape[:2])
    best, index = quality.where(inside, 0).topk(
        min(topk, quality.shape[2]), sorted=False
    )
    kept = best > 0
    xs, ys = (side.expand(-1, index.shape[1], -1).gather(2, index) for side in (x, y))
    half = _half_distance(x, y, xs, ys, kept.to(centers.dtype))
    near = inside & kept.any(2, keepdim=True) & (half < REACH)
    weights = half.neg_().exp_().where(near, 0).amax(1)
    return weights, (~inside.any(1)).to(centers.dtype)


def _half_distance(
    x: Tensor, y: Tensor, xs: Tensor, ys: Tensor, kept: Tensor
) -> Tensor:
    """Return half the squared Mahalanobis distance of (x, y) from the chosen points."""
    share = kept / kept.sum(2, keepdim=True).clamp(min=1)
    mean_x, mean_y = ((side * share).sum(2, keepdim=True) for side in (xs, ys))
    dx, dy = xs - mean_x, ys - mean_y
    variance = (share * dx.square()).sum(2, keepdim=True) + JITTER
    # First x, then what of y it does not tell: all terms are positive, whereas the
    # determinant of points in a row is lost to rounding.
    slope = (share * dx * dy).sum(2, keepdim=True) / variance
    rest = (share * (dy - slope * dx).square()).sum(2, keepdim=True)
    rest = rest + JITTER * (1 + slope.square())
    dx, dy = x - mean_x, y - mean_y
    return (dx.square() / variance + (dy - slope * dx).square() / rest) / 2


@torch.no_grad()
def teacher_masks(
    teacher_cls: list[Tensor],
    teacher_reg: list[Tensor],
    data_samples: Sequence[Any],
    targets: DenseTargets,
    iou_exponent: float,
    topk: int,
) -> list[tuple[Tensor, Tensor]]:
    """Return the `guidance_masks` of a batch by what the teacher predicts.

    Args:
        teacher_cls: For each level the logits (N, A * K, H, W).
        teacher_reg: For each level the raw boxes (N, A * D, H, W).
        data_samples: The batch's samples, which hold the objects.
        targets: The student's, whose priors are the teacher's as well.
        iou_exponent: See `prediction_quality`.
        topk: Number of best cells of a box, over all levels.

    Returns:
        For each level the weights and the background, (N, H, W) each.

    Raises:
        ValueError: If the predictions do not fit the student's priors.
    """
    boxes, labels, exist = pad_boxes(data_samples, teacher_cls[0].device)
    boxes = boxes.to(torch.promote_types(teacher_cls[0].dtype, torch.float32))
    quality, centers = [], []
    with torch.autocast(boxes.device.type, enabled=False):
        for level, maps in enumerate(zip(teacher_cls, teacher_reg, strict=True)):
            logits, found, points = _read_level(*maps, level, targets)
            centers.append(points.to(boxes.dtype))
            quality.append(
                prediction_quality(logits, found, boxes, labels, iou_exponent)
            )
        masks = guidance_masks(
            boxes, exist, torch.cat(centers, 1), torch.cat(quality, 2), topk
        )
    sizes = [x.shape[-2:] for x in teacher_cls]
    levels = [mask.split([h * w for h, w in sizes], 1) for mask in masks]
    return [
        (inside.unflatten(1, size), outside.unflatten(1, size))
        for inside, outside, size in zip(*levels, sizes, strict=True)
    ]


def _read_level(
    logits: Tensor, raw: Tensor, level: int, targets: DenseTargets
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (N, A, K, P), boxes (N, A, P, 4) and centres of cells (N, P, 2)."""
    count, channels, cells = len(logits), logits.shape[1], logits[0, 0].numel()
    priors = targets.priors[level]
    anchors = priors.shape[1] // cells
    if (
        priors.shape[1] % cells
        or channels != anchors * targets.num_classes
        or raw.shape[1] % anchors
        or raw.shape[2:] != logits.shape[2:]
    ):
        raise ValueError(
            f"level {level}: the teacher's logits {tuple(logits.shape)} and boxes "
            f"{tuple(raw.shape)} do not fit the student's {priors.shape[1]} priors of "
            f'{targets.num_classes} classes; choose a teacher with the same head, and '
            'record its predictors for `teacher_cls` and `teacher_reg`'
        )
    # Boxes of an image of 1000 pixels lose their digits in half precision.
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    boxes = targets.decode(level, flatten_predictions(raw, raw.shape[1] // anchors))
    boxes = boxes.reshape(count, cells, anchors, 4).transpose(1, 2)
    # The anchors of a cell share a centre: the mean of two corners, or a point.
    corners = priors.reshape(count, cells, anchors, -1, 2)[:, :, 0]
    return logits.reshape(count, anchors, -1, cells), boxes, corners.mean(2)
