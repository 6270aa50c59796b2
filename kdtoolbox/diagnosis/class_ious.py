"""Sum up the IoU of each class over predicted label maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ClassIoUs:
    """Count the pixels of each class; mmseg's metric keeps only their mean.

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
        self._counts = torch.zeros(3, count, dtype=torch.long)

    def add(self, samples: Sequence[Any]) -> None:
        """Add samples with predictions; those without label maps add nothing."""
        for sample in samples:
            if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
                self.add_maps(sample.pred_sem_seg.data, sample.gt_sem_seg.data)

    def add_maps(self, predicted: Tensor, labels: Tensor) -> None:
        """Add a predicted label map and the true one, of any equal shape."""
        predicted, labels = predicted.flatten().cpu(), labels.flatten().cpu()
        count = len(self._names)
        known = labels < count
        predicted, labels = predicted[known].long(), labels[known].long()
        hits = labels[predicted == labels]
        for row, values in enumerate((hits, predicted, labels)):
            self._counts[row] += values.bincount(minlength=count)[:count]

    def values(self) -> dict[str, float]:
        """Return the IoU in percent of each class that was predicted or present."""
        hits, predicted, labels = self._counts.double()
        union = predicted + labels - hits
        return {
            name: float(100 * hits[index] / union[index])
            for index, name in enumerate(self._names)
            if union[index]
        }
