"""Read the targets of a dense head of mmdet while it computes its loss."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes


class TargetRecord:
    """The last call of a head's ``get_targets``: its priors and its return value."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.kind: Any = type(head)
        self.priors: Any = None
        self.result: tuple = ()

    def read(self, data_samples: Sequence) -> DenseTargets:
        """Return the targets in the form that losses read.

        Raises:
            ValueError: If the head computed none or is of another family.
        """
        from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead

        families: dict[Any, Any] = {
            FCOSHead: _read_points,
            ATSSHead: _read_returned_anchors,
            GFLHead: _read_returned_anchors,
            AnchorHead: _read_anchors,
        }
        for family, reader in families.items():
            if isinstance(self.head, family) and self.result:
                # What an overridden method returns has another form.
                if self.kind.get_targets is not family.get_targets:
                    break
                return reader(self.head, self.priors, self.result, data_samples)
        raise ValueError(
            'model.losses: a loss reads the targets of `student.bbox_head`, which is '
            f'a {self.kind.__name__}; supported are the heads of RetinaNet, '
            'FCOS, ATSS and GFL. Choose a loss that needs no targets, such as PKDLoss '
            'on the neck'
        )


@contextmanager
def record_targets(model: nn.Module, wanted: bool = True) -> Iterator[TargetRecord]:
    """Record the targets that ``model.bbox_head`` computes in the block.

    The distillation then uses the targets of the student's own loss, and nothing is
    assigned twice.

    Args:
        model: A detector of mmdet.
        wanted: Whether to record anything.
    """
    head: Any = getattr(model, 'bbox_head', None) if wanted else None
    found = TargetRecord(head)
    if not hasattr(head, 'get_targets'):
        yield found
        return
    get_targets = head.get_targets

    def observed(priors: Any, *args: Any, **kwargs: Any) -> tuple:
        # Some heads concatenate the levels of this list in place.
        found.priors = [p if isinstance(p, Tensor) else list(p) for p in priors]
        found.result = get_targets(priors, *args, **kwargs)
        return found.result

    head.get_targets = observed
    try:
        yield found
    finally:
        del head.get_targets


def _read_anchors(
    head: Any, priors: list[list[Tensor]], result: tuple, data_samples: Sequence
) -> DenseTargets:
    anchors = [torch.stack(level) for level in zip(*priors, strict=True)]
    return _with_anchors(head, anchors, result[:3], result[4], data_samples)


def _read_returned_anchors(
    head: Any, priors: Any, result: tuple, data_samples: Sequence
) -> DenseTargets:
    # These heads divide by the mean over processes.
    count = _number(result[5], result[0][0].device)
    return _with_anchors(
        head, result[0], result[1:4], _mean_over_processes(count), data_samples
    )


def _number(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, torch.float)
    # A copy of the number would wait for the device.
    return torch.full((), value, dtype=torch.float, device=device)


def _with_anchors(
    head: Any,
    anchors: list[Tensor],
    targets: Sequence[list[Tensor]],
    avg_factor: Any,
    data_samples: Sequence,
) -> DenseTargets:
    labels, label_weights, boxes = targets
    strides = [max(stride) for stride in head.prior_generator.strides]
    if hasattr(head, 'integral'):
        decode = partial(_decode_distribution, head, anchors, strides)
    else:
        decode = partial(_decode_deltas, head, anchors)
    if not (hasattr(head, 'integral') or head.reg_decoded_bbox):
        boxes = [_decode_deltas(head, anchors, i, box) for i, box in enumerate(boxes)]
    device = anchors[0].device
    return DenseTargets(
        labels=labels,
        label_weights=label_weights,
        priors=anchors,
        strides=strides,
        num_classes=head.num_classes,
        avg_factor=_number(avg_factor, device),
        decode=decode,
        gt_inds=_match(labels, boxes, data_samples, head.num_classes),
    )


def _read_points(
    head: Any, points: list[Tensor], result: tuple, data_samples: Sequence
) -> DenseTargets:
    count = len(data_samples)
    strides = list(head.strides)
    labels = [level.reshape(count, -1) for level in result[0]]
    distances = [level.reshape(count, -1, 4) for level in result[1]]
    priors = [level.expand(count, *level.shape) for level in points]
    boxes = [
        _around(prior, distance * (stride if head.norm_on_bbox else 1))
        for prior, distance, stride in zip(priors, distances, strides, strict=True)
    ]
    positive = [(label >= 0) & (label < head.num_classes) for label in labels]
    centerness = head.centerness_target(
        torch.cat([d[p] for d, p in zip(distances, positive, strict=True)])
    )
    total = _mean_over_processes(centerness.sum())
    return DenseTargets(
        labels=labels,
        label_weights=[torch.ones_like(label, dtype=torch.float) for label in labels],
        priors=priors,
        strides=strides,
        num_classes=head.num_classes,
        # In a batch without objects a small divisor would make the losses huge.
        avg_factor=total.where(total > 0, 1),
        decode=partial(_decode_distances, head, priors, strides),
        gt_inds=_match(labels, boxes, data_samples, head.num_classes),
    )


def _decode_deltas(
    head: Any, anchors: list[Tensor], level: int, deltas: Tensor
) -> Tensor:
    boxes = head.bbox_coder.decode(anchors[level].reshape(-1, 4), deltas.reshape(-1, 4))
    return boxes.reshape(len(deltas), -1, 4)


def _decode_distribution(
    head: Any, anchors: list[Tensor], strides: list[int], level: int, logits: Tensor
) -> Tensor:
    distances = head.integral(logits).reshape(len(logits), -1, 4) * strides[level]
    first, last = anchors[level].split(2, dim=-1)
    return _around((first + last) / 2, distances)


def _decode_distances(
    head: Any, points: list[Tensor], strides: list[int], level: int, raw: Tensor
) -> Tensor:
    # As in the head's forward, after the layer `scales` that is recorded.
    distances = raw.clamp(min=0) * strides[level] if head.norm_on_bbox else raw.exp()
    return _around(points[level], distances)


def _around(points: Tensor, distances: Tensor) -> Tensor:
    first, last = distances.split(2, dim=-1)
    return torch.cat([points - first, points + last], dim=-1)


def _match(
    labels: list[Tensor], boxes: list[Tensor], data_samples: Sequence, background: int
) -> list[Tensor]:
    """Return the index of the nearest box of its class for each positive, else -1."""
    gt_boxes, gt_labels, exist = pad_boxes(data_samples, labels[0].device)
    found = []
    for label, box in zip(labels, boxes, strict=True):
        positive = (label >= 0) & (label < background)
        if not gt_boxes.shape[1]:
            found.append(torch.full_like(label, -1))
            continue
        distance = torch.cdist(box.float(), gt_boxes.float(), p=1)
        other = (label[:, :, None] != gt_labels[:, None]) | ~exist[:, None]
        nearest = distance.masked_fill(other, float('inf')).argmin(dim=2)
        found.append(nearest.where(positive, -1))
    return found


def _mean_over_processes(value: Tensor) -> Tensor:
    if get_world_size() == 1:
        return value
    value = value.clone()
    all_reduce(value, op='mean')
    return value
