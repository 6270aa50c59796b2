"""RoIAlign in plain torch, for losses on the features of boxes."""

import torch
from torch import Tensor
from torch.nn import functional


def pool_boxes(
    levels: list[Tensor],
    strides: list[int],
    boxes: Tensor,
    exist: Tensor,
    cells: int = 10,
) -> Tensor:
    """Pool the features of boxes: the mean of 2x2 samples per cell.

    A box is sampled from level floor(log2(sqrt(area) / finest_scale)), as mmdet's
    ``SingleRoIExtractor`` does. finest_scale is 14 * strides[0]: 56, as in mmdet, for a
    pyramid that starts at stride 4, and 112 for one that starts at stride 8. So a box
    is sampled at the same stride in both. All levels are sampled and one is selected.
    This keeps the shapes fixed and costs 4 * cells^2 points per box, level and channel.

    Args:
        levels: For each level features (N, C, H, W), float32 or wider.
        strides: For each level its stride in pixels, each twice the one before.
        boxes: Boxes (N, I, 4) as (x1, y1, x2, y2) inside the image, in pixels.
        exist: Mask (N, I) of the valid boxes.
        cells: Number of cells along each side of a box.

    Returns:
        Features (N, I, C * cells^2), 0 for boxes that are not valid.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 16.0, 16.0]]])
        >>> maps = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> pool_boxes([maps], [8], boxes, torch.ones(1, 1) > 0, cells=2)
        tensor([[[0.3750, 1.1250, 1.8750, 2.6250]]])
    """
    boxes = boxes.to(levels[0].dtype)
    sides = boxes[..., 2:] - boxes[..., :2]
    scale = sides.prod(-1).sqrt() / (14 * strides[0])
    home = (scale + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    points = torch.arange(2 * cells, device=boxes.device, dtype=boxes.dtype) + 0.5
    steps = points[:, None] / (2 * cells) * sides[:, :, None]
    x, y = (boxes[:, :, None, :2] + steps).unbind(-1)
    pooled = []
    for level, (maps, stride) in enumerate(zip(levels, strides, strict=True)):
        # grid_sample expects -1 and 1 at the outer edges of the map.
        height, width = (2 / (stride * size) for size in maps.shape[2:])
        cross = torch.broadcast_tensors(x[:, :, None] * width, y[..., None] * height)
        grid = torch.stack(cross, dim=-1).flatten(1, 2) - 1
        values = functional.grid_sample(
            maps, grid, padding_mode='border', align_corners=False
        )
        # A mean over two axes of length 2 takes several times as long as these sums.
        values = torch.add(*values.unflatten(3, (cells, 2)).unbind(4))
        values = torch.add(*values.unflatten(2, (-1, 2)).unbind(3)) / 4
        here = (exist & (home == level))[:, None, :, None, None]
        pooled.append(values.unflatten(2, (-1, cells)).where(here, 0))
    return torch.stack(pooled).sum(0).transpose(1, 2).flatten(2)
