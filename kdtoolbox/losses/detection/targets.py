"""Targets and ground truth in the shapes that vectorised losses read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class DenseTargets:
    """The targets of the student's dense head in one step.

    The M_l predictions of level l are in the order (H, W, anchors), as
    `flatten_predictions` returns them.

    Attributes:
        labels: For each level (N, M_l), long; ``num_classes`` is the background.
        label_weights: For each level (N, M_l); 0 for ignored labels.
        priors: For each level (N, M_l, 4) anchors as (x1, y1, x2, y2), or (N, M_l, 2)
            points, in pixels of the padded input.
        strides: For each level its stride in pixels.
        num_classes: Number of classes without background.
        avg_factor: The divisor of the student's own losses, a scalar: the number of
            positives. Some heads average it over the processes. For FCOS it is the sum
            of the centerness targets, which divides its box loss, or 1 if that is 0.
        decode: A differentiable function of a level and its raw box predictions
            (N, M_l, D) that returns boxes (N, M_l, 4) in pixels.
        gt_inds: For each level (N, M_l), long: for each positive the index of its box
            in `pad_boxes`, -1 for all others.
    """

    labels: list[Tensor]
    label_weights: list[Tensor]
    priors: list[Tensor]
    strides: list[int]
    num_classes: int
    avg_factor: Tensor
    decode: Callable[[int, Tensor], Tensor]
    gt_inds: list[Tensor]

    def positives(self, level: int) -> Tensor:
        """Return the mask (N, M_l) of the positive predictions of a level."""
        labels = self.labels[level]
        return (labels >= 0) & (labels < self.num_classes)


def flatten_predictions(maps: Tensor, size: int) -> Tensor:
    """Reshape maps (N, A * size, H, W) to rows (N, H * W * A, size).

    Example:
        >>> tuple(flatten_predictions(torch.zeros(2, 3 * 4, 5, 6), 4).shape)
        (2, 90, 4)
    """
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, size)


def pad_boxes(
    data_samples: Sequence[Any], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Stack the ground truth of a batch, padded to the largest number of boxes.

    Args:
        data_samples: N samples with ``gt_instances``.
        device: Device of the result.

    Returns:
        Boxes (N, G, 4) as (x1, y1, x2, y2) in pixels of the padded input, labels
        (N, G), and the mask (N, G) of those that exist. G may be 0.

    Example:
        >>> from types import SimpleNamespace
        >>> boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> one = SimpleNamespace(bboxes=boxes, labels=torch.tensor([3]))
        >>> none = SimpleNamespace(bboxes=boxes[:0], labels=torch.tensor([]).long())
        >>> samples = [SimpleNamespace(gt_instances=i) for i in (one, none)]
        >>> pad_boxes(samples, boxes.device)[2].tolist()
        [[True], [False]]
    """
    instances = [sample.gt_instances for sample in data_samples]
    boxes = [instance.bboxes.reshape(-1, 4).to(device) for instance in instances]
    labels = [instance.labels.to(device) for instance in instances]
    exist = [torch.ones_like(label, dtype=torch.bool) for label in labels]
    return (
        pad_sequence(boxes, batch_first=True),
        pad_sequence(labels, batch_first=True),
        pad_sequence(exist, batch_first=True),
    )
