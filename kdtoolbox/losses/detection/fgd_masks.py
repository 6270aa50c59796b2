"""Focal and global distillation (FGD, arXiv:2111.11837): its masks.

The loss is in `kdtoolbox.losses.detection.fgd`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.losses.detection.boxes import to_cells
from kdtoolbox.losses.detection.targets import pad_boxes


def object_masks(
    boxes: Tensor, exist: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    r"""Compute the weight of each cell, so that small and large objects count equally.

    A box covers the cells from floor(x1, y1) to ceil(x2, y2), both included. Each
    covered cell weighs 1 / area, where area counts cells outside the map; overlapping
    boxes take the maximum. Each uncovered cell weighs 1 / (uncovered cells of the
    image).

    Args:
        boxes: Boxes (N, G, 4) as (x1, y1, x2, y2) in cells of the map, padded.
        exist: Mask (N, G) of the boxes that are not padding.
        size: Height and width of the map.

    Returns:
        The foreground weights and the background weights, (N, H, W) each. Each is 0
        where the other is not.

    Example:
        >>> boxes, exist = torch.tensor([[[0.2, 0.0, 0.9, 0.0]]]), torch.ones(1, 1) > 0
        >>> foreground, background = object_masks(boxes, exist, (1, 4))
        >>> foreground
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]])
        >>> background
        tensor([[[0.0000, 0.0000, 0.5000, 0.5000]]])
    """
    first, last = boxes[..., :2].floor(), boxes[..., 2:].ceil()
    weights = exist / (last - first + 1).prod(-1)
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    rows = (rows >= first[..., 1:]) & (rows <= last[..., 1:])
    columns = (columns >= first[..., :1]) & (columns <= last[..., :1])
    covered = rows[..., None] & columns[..., None, :]
    if boxes.shape[1]:
        foreground = torch.where(covered, weights[..., None, None], 0).amax(1)
    else:
        foreground = boxes.new_zeros(len(boxes), *size)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


def sample_masks(
    maps: Tensor, data_samples: Sequence[Any], shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return `object_masks` of samples whose maps cover images of these shapes."""
    boxes, _, exist = pad_boxes(data_samples, maps.device)
    boxes = boxes.to(torch.promote_types(maps.dtype, torch.float32))
    size = (maps.shape[2], maps.shape[3])
    return object_masks(to_cells(boxes, shapes, size), exist, size)
