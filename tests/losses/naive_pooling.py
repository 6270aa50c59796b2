import math

import torch
from torch import Tensor


def bilinear(maps: Tensor, x: float, y: float) -> Tensor:
    """Interpolate the channels at a point; the centres of cells are integers."""
    height, width = maps.shape[1:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = math.floor(x), math.floor(y)
    right, low = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = maps[:, top, left] * (left + 1 - x) + maps[:, top, right] * (x - left)
    lower = maps[:, low, left] * (left + 1 - x) + maps[:, low, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def naive_pool(maps: Tensor, stride: int, box: list[float], cells: int) -> Tensor:
    """Pool one box from one map (C, H, W), one sample at a time."""
    width, height = (box[2] - box[0]) / cells, (box[3] - box[1]) / cells
    rows = []
    for row in range(cells):
        for column in range(cells):
            total = maps.new_zeros(len(maps))
            for down in (0.25, 0.75):
                for right in (0.25, 0.75):
                    x = (box[0] + (column + right) * width) / stride - 0.5
                    y = (box[1] + (row + down) * height) / stride - 0.5
                    total = total + bilinear(maps, x, y) / 4
            rows.append(total)
    return torch.stack(rows, 1).flatten()
