"""Labels of the pixels of a segmentation batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -1
"""The label of ignored pixels in this package, for every ``ignore_index``."""


def pixel_labels(
    data_samples: Sequence[Any], size: Sequence[int], device: torch.device
) -> Tensor | None:
    """Return the labels of a segmentation batch, resized to a map.

    Args:
        data_samples: N samples with ``gt_sem_seg.data`` of (1, H, W), all of one size.
            Their metainfo contains the ``ignore_index`` of the task; the default is
            255.
        size: Height and width (h, w) of the map.
        device: Device of the result.

    Returns:
        The nearest labels (N, h, w), long, `IGNORED` at ignored pixels; or None if the
        samples have no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> labels = torch.arange(16).reshape(1, 4, 4)
        >>> sample = SimpleNamespace(gt_sem_seg=SimpleNamespace(data=labels))
        >>> pixel_labels([sample], (2, 2), labels.device)
        tensor([[[ 0,  2],
                 [ 8, 10]]])
    """
    if not data_samples or not hasattr(data_samples[0], 'gt_sem_seg'):
        return None
    return torch.stack([_canonical_labels(s, size) for s in data_samples]).to(device)


def _canonical_labels(sample: Any, size: Sequence[int]) -> Tensor:
    labels = sample.gt_sem_seg.data[0]
    for axis, length in enumerate(size):
        # Less work than to resize the labels, which would have to be floats.
        if labels.shape[axis] != length:
            nearest = _nearest(labels.shape[axis], length, labels.device)
            labels = labels.index_select(axis, nearest)
    ignored = getattr(sample, 'metainfo', {}).get('ignore_index', 255)
    labels = labels.long()
    return labels.where(labels != ignored, IGNORED)


def _nearest(length: int, size: int, device: torch.device) -> Tensor:
    places = torch.arange(length, dtype=torch.float, device=device)
    return functional.interpolate(places[None, None], size=size)[0, 0].long()


def number_classes(labels: Tensor) -> Tensor:
    """Renumber the classes of each image from 0 on, in ascending order.

    Memory per class then depends on the classes in an image. The number of classes of
    the data set is unknown here: a label map does not contain it.

    Args:
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.

    Returns:
        The new numbers (N, H, W), long, `IGNORED` at pixels without a class.

    Example:
        >>> number_classes(torch.tensor([[[7, 900, -1, 7]]]))
        tensor([[[ 0,  1, -1,  0]]])
    """
    ordered, places = labels.flatten(1).sort(1)
    # IGNORED is -1: it is sorted first and gets the number -1 again.
    first = ordered[:, :1] != IGNORED
    is_new = torch.cat([first, ordered[:, 1:] != ordered[:, :-1]], 1)
    numbers = torch.empty_like(places).scatter_(1, places, is_new.cumsum(1) - 1)
    return numbers.unflatten(1, labels.shape[1:])
