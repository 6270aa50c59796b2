"""Sum up the IoU of each class over predicted label maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_NO_LABEL = -1
"""Pixels without a known class are left out before they are counted."""


class ClassIoUs:
    """Sum up the areas of each class as mmseg counts them; its metric gives their mean.

    Args:
        names: The names of the classes.

    Example:
        >>> ious = ClassIoUs(['road', 'sky'])
        >>> ious.add_maps(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
        >>> ious.values()
        {'road': 50.0, 'sky': 50.0}
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [*map(str, names)]
        count = len(self._names)
        self._areas = torch.zeros(2, count, dtype=torch.float64)

    def add(self, samples: Sequence[Any]) -> None:
        """Add samples with predictions; those without label maps add nothing."""
        for sample in samples:
            if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
                self.add_maps(sample.pred_sem_seg.data, sample.gt_sem_seg.data)

    def add_maps(self, predicted: Tensor, labels: Tensor) -> None:
        """Add a predicted label map and the true one, of any equal shape."""
        # Imported here, as detectors do not need mmseg.
        from mmseg.evaluation import IoUMetric

        count = len(self._names)
        known = labels < count
        areas = IoUMetric.intersect_and_union(
            predicted[known].cpu(), labels[known].cpu(), count, _NO_LABEL
        )
        self._areas += torch.stack(areas[:2]).double()

    def values(self) -> dict[str, float]:
        """Return the IoU in percent of each class that was predicted or present."""
        shared, union = self._areas
        return {
            name: float(100 * shared[index] / union[index])
            for index, name in enumerate(self._names)
            if union[index]
        }
