"""Logits of rows and maps in closed form, and pixel labels of the maps."""

from types import SimpleNamespace

import torch
from golden import waves
from torch import Tensor

ROWS = waves((6, 5), 0.9, 0.3), 2 * waves((6, 5), 0.7, 0.5, 1.0)
MAPS = waves((2, 4, 6, 5), 0.37, 0.11), 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
SMALL = tuple(maps[:, :, :3, :2] for maps in MAPS)
LABELS = (torch.arange(60) % 4).reshape(2, 6, 5)
LABELS[0, 1:3], LABELS[1, :, 2] = 255, 255


def samples_of(labels: Tensor) -> list:
    """Return one sample per image with the labels (N, H, W)."""
    return [
        SimpleNamespace(gt_sem_seg=SimpleNamespace(data=label[None]))
        for label in labels
    ]


def valid_pixels(maps: Tensor, labels: Tensor = LABELS) -> Tensor:
    """Return the R pixels (R, K) of maps (N, K, H, W) that are not ignored."""
    return maps.movedim(1, -1)[labels != 255]
