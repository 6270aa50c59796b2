"""Prediction-guided distillation (PGD, arXiv:2203.05469): its masks.

The losses are in `kdtoolbox.losses.detection.pgd`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.losses.detection.boxes import box_ious
from kdtoolbox.losses.detection.targets import (
    DenseTargets,
    flatten_predictions,
    pad_boxes,
)
from kdtoolbox.losses.precision import full_precision

JITTER = 0.1**2 / 12
"""Variance of the authors' jitter in square pixels: uniform over 0.1 pixels."""

REACH = 87.0
"""Largest exponent: exp(-87) is about the smallest normal number of float32."""


def prediction_quality(
    logits: Tensor,
    predicted: Tensor,
    boxes: Tensor,
    labels: Tensor,
    iou_exponent: float,
) -> Tensor:
    r"""Compute the quality of the prediction of each cell for each box.

    .. math:: q = \sigma(z_y)^{1 - \xi} \, IoU(\hat b, b)^\xi

    where y is the class of the box b. With several predictions per cell, the maximum.

    Args:
        logits: Class logits (N, A, K, P) of P cells with A predictions each.
        predicted: Predicted boxes (N, A, P, 4) as (x1, y1, x2, y2).
        boxes: Ground truth (N, G, 4).
        labels: Classes of the ground truth (N, G).
        iou_exponent: The exponent xi of the IoU.

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
    # Gather first: a cast of the logits of all classes would take far more memory.
    return _quality(logits.gather(2, index), predicted, boxes, iou_exponent)


@full_precision
def _quality(
    logits: Tensor, predicted: Tensor, boxes: Tensor, iou_exponent: float
) -> Tensor:
    iou = box_ious(predicted[:, :, None], boxes[:, None, :, None])
    # In place: with nine anchors per cell these are the largest tensors of the loss.
    quality = logits.sigmoid().pow_(1 - iou_exponent).mul_(iou.pow_(iou_exponent))
    return quality.amax(1)


@full_precision
def guidance_masks(
    boxes: Tensor, exist: Tensor, centers: Tensor, quality: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    r"""Compute the foreground weights and the background mask of all cells.

    For each box, a Gaussian with the mean and covariance of the centres of its best
    cells is fitted. A cell inside the box weighs :math:`\exp(-d^2 / 2)`, where d is its
    Mahalanobis distance; overlapping boxes take the maximum. Cells outside of all boxes
    weigh 0.

    Deviation: the authors add random jitter to the centres before the fit, so that the
    covariance of a small box is not singular. Here the variance of the jitter is added
    to the covariance.

    Deviation: weights below the smallest normal float32 number are 0 in every
    precision, because the losses divide by the number of nonzero weights.

    Unverified: cells outside the box and cells of quality 0 are left out of the fit.

    Args:
        boxes: Ground truth (N, G, 4) as (x1, y1, x2, y2) in pixels, padded.
        exist: Mask (N, G) of the boxes that are not padding.
        centers: Centres (N, P, 2) of the cells of all levels, in pixels.
        quality: Quality (N, G, P) of the cells for the boxes.
        topk: Number of best cells of a box.

    Returns:
        The foreground weights (N, P), and the background mask (N, P), which is 1
        outside of all boxes and 0 inside.

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
    # Regress y on x instead of inverting the covariance: all terms stay positive, while
    # rounding would cancel the determinant of collinear points.
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
    """Compute the `guidance_masks` of a batch from the teacher's predictions.

    Args:
        teacher_cls: For each level the logits (N, A * K, H, W).
        teacher_reg: For each level the raw boxes (N, A * D, H, W).
        data_samples: The batch's samples with their ground truth.
        targets: Targets of the student's head; the teacher has to have the same priors.
        iou_exponent: See `prediction_quality`.
        topk: Number of best cells of a box, over all levels.

    Returns:
        For each level the foreground weights and the background mask, (N, H, W) each.

    Raises:
        ValueError: If the teacher's predictions do not fit the student's priors.
    """
    boxes, labels, exist = pad_boxes(data_samples, teacher_cls[0].device)
    boxes = boxes.to(torch.promote_types(teacher_cls[0].dtype, torch.float32))
    quality, centers = [], []
    for level, maps in enumerate(zip(teacher_cls, teacher_reg, strict=True)):
        logits, predicted, points = _read_level(*maps, level, targets)
        centers.append(points.to(boxes.dtype))
        quality.append(
            prediction_quality(logits, predicted, boxes, labels, iou_exponent)
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
    boxes = _decode(raw, level, targets, anchors)
    boxes = boxes.reshape(count, cells, anchors, 4).transpose(1, 2)
    # All anchors of a cell have one centre: the mean of two corners, or the point.
    corners = priors.reshape(count, cells, anchors, -1, 2)[:, :, 0]
    return logits.reshape(count, anchors, -1, cells), boxes, corners.mean(2)


@full_precision
def _decode(raw: Tensor, level: int, targets: DenseTargets, anchors: int) -> Tensor:
    """Return the boxes (N, M, 4) of a raw map.

    In half precision, coordinates of up to 1000 pixels would lose their last digits.
    """
    return targets.decode(level, flatten_predictions(raw, raw.shape[1] // anchors))
