"""What the losses on class logits share: ignored pixels, labels, sigmoid heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.arguments import check_above
from kdtoolbox.losses.inputs import SAME_CLASSES, at_least_float32

IGNORED = -1
"""The label here of pixels that the task ignores, whatever its ``ignore_index``."""


@dataclass(frozen=True)
class ClassLogits:
    """Logits of both sides, with the classes on axis 1.

    Attributes:
        student: (R, K) or (N, K, H, W), float32 or wider.
        teacher: The same shape, detached. What does not count is finite on both sides.
        valid: Which rows (R,) or pixels (N, H, W) count.
        labels: Their classes, long; 0 where nothing counts. None if there are none.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor
    labels: Tensor | None

    def mean(self, values: Tensor) -> Tensor:
        """Average values (R,) or (N, H, W) over what counts; 0 if nothing does."""
        # Not a product with the mask: what does not count may be infinite.
        return values.where(self.valid, 0).sum() / self.valid.sum().clamp(min=1)


def read_logits(
    student: Tensor,
    teacher: Tensor,
    data_samples: Sequence[Any] = (),
    labels: Tensor | None = None,
    use_sigmoid: bool = False,
) -> ClassLogits:
    """Check logits, lift their precision and find what counts.

    Pixels that the task ignores do not count; all rows do, and all pixels of a batch
    without ``gt_sem_seg``, such as that of a detector.

    Args:
        student: Logits (R, K) of RoIs or (N, K, H, W) of maps.
        teacher: The same shape.
        data_samples: The batch's samples, whose ``gt_sem_seg`` is read for maps.
        labels: Classes (R,) of rows; those of maps come from the samples.
        use_sigmoid: Whether each class has a probability of its own. Each logit z then
            becomes a row (0, z) of two classes, K times as many as before; the label of
            such a row is 1 if it is that of its class.

    Raises:
        ValueError: If the shapes differ or are others, or the labels do not fit.

    Example:
        >>> maps = torch.zeros(2, 19, 4, 4)
        >>> logits = read_logits(maps, maps, use_sigmoid=True)
        >>> tuple(logits.student.shape), tuple(logits.valid.shape)
        ((38, 2, 4, 4), (38, 4, 4))
    """
    check_logits(student, teacher, (2, 4), least=1 if use_sigmoid else 2)
    if labels is not None:
        check_labels(labels, len(student))
    elif student.dim() == 4:
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
    valid = torch.ones_like(student[:, 0], dtype=torch.bool)
    if labels is not None:
        valid = labels != IGNORED
        labels = labels.where(valid, 0)
    student, teacher = at_least_float32(student, teacher)
    if labels is not None:
        student, teacher = (_filled(x, valid) for x in (student, teacher))
    if not use_sigmoid:
        return ClassLogits(student, teacher, valid, labels)
    classes = torch.arange(student.shape[1], device=student.device)
    classes = classes.reshape(1, -1, *[1] * (student.dim() - 2))
    if labels is not None:
        labels = (labels[:, None] == classes).long().flatten(0, 1)
    valid = valid[:, None].expand_as(student).flatten(0, 1)
    student, teacher = (_two_classes(x) for x in (student, teacher))
    return ClassLogits(student, teacher, valid, labels)


def require_labels(owner: str, logits: ClassLogits) -> Tensor:
    """Return the labels of logits, which must have some.

    Raises:
        ValueError: If there are none.

    Example:
        >>> rows, labels = torch.zeros(2, 5), torch.tensor([3, 0])
        >>> require_labels('NKDLoss', read_logits(rows, rows, labels=labels))
        tensor([3, 0])
    """
    if logits.labels is None:
        raise ValueError(
            f'{owner} reads true classes, and there are none: maps need samples with '
            '`gt_sem_seg`, as a segmentor has them; for rows name the wire of their '
            "labels, such as labels='roi.labels'"
        )
    return logits.labels


def _filled(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the logits with harmless ones in place of what does not count.

    An infinite one would make the gradient NaN even where its loss is masked; equal
    ones have no deviation to divide by.
    """
    dtype, device = logits.dtype, logits.device
    ramp = torch.linspace(0, 1, logits.shape[1], dtype=dtype, device=device)
    return logits.where(valid[:, None], ramp.reshape(1, -1, *[1] * (logits.dim() - 2)))


def _two_classes(logits: Tensor) -> Tensor:
    flat = logits.flatten(0, 1)
    return torch.stack([torch.zeros_like(flat), flat], 1)


def pixel_labels(
    data_samples: Sequence[Any], size: Sequence[int], device: torch.device
) -> Tensor | None:
    """Return the labels of a segmentation batch at the size of a map.

    Args:
        data_samples: N samples with ``gt_sem_seg.data`` of (1, H, W), all of one size.
            Their metainfo has the ``ignore_index`` of the task, else it is 255.
        size: Height and width (h, w) of the map.
        device: Where the result is to lie.

    Returns:
        The nearest labels (N, h, w), long, with `IGNORED` for the pixels that the task
        ignores; or None if the samples have none.

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
    labels = torch.stack([_canonical_labels(sample) for sample in data_samples])
    labels = labels.to(device=device, dtype=torch.float)
    return functional.interpolate(labels, size=tuple(size))[:, 0].long()


def _canonical_labels(sample: Any) -> Tensor:
    labels = sample.gt_sem_seg.data.long()
    ignored = getattr(sample, 'metainfo', {}).get('ignore_index', 255)
    return labels.where(labels != ignored, IGNORED)


def number_classes(labels: Tensor) -> Tensor:
    """Number the classes that each image shows from 0 on, in their order.

    So that what is held per class depends on the image, not on the data set, whose
    number of classes no label map tells.

    Args:
        labels: Classes (N, H, W), long, `IGNORED` for pixels of none.

    Returns:
        The numbers (N, H, W), long, `IGNORED` where the label is.

    Example:
        >>> number_classes(torch.tensor([[[7, 900, -1, 7]]]))
        tensor([[[ 0,  1, -1,  0]]])
    """
    ordered, places = labels.flatten(1).sort(1)
    # What is ignored comes first and keeps the number before 0.
    first = ordered[:, :1] != IGNORED
    is_new = torch.cat([first, ordered[:, 1:] != ordered[:, :-1]], 1)
    numbers = torch.empty_like(places).scatter_(1, places, is_new.cumsum(1) - 1)
    return numbers.unflatten(1, labels.shape[1:])


_FEW_CLASSES = {
    1: 'there is nothing to compare',
    2: 'a softmax over one class is 1 whatever the logit, and teaches nothing',
    3: 'of two classes nothing is left but which one is larger',
}
"""Why fewer classes than these do not teach."""


def check_logits(
    student: Tensor, teacher: Tensor, axes: tuple[int, ...], least: int = 2
) -> None:
    """Refuse anything but two tensors of one shape with enough classes on axis 1.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape.
        axes: The numbers of axes that the caller can read.
        least: The least number of classes that teach anything.

    Raises:
        ValueError: If it is another number of axes, the shapes differ, or there are
            too few classes.

    Example:
        >>> check_logits(torch.ones(6, 5), torch.ones(6, 5), axes=(2,))
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() not in axes or teacher.dim() not in axes:
        known = {2: 'rows (R, K)', 4: 'maps (N, K, H, W)'}
        raise ValueError(
            f'expected logits as {" or ".join(known[n] for n in axes)}, got {shapes}; '
            'name wires of class logits as `student` and `teacher` of this loss'
        )
    if student.shape != teacher.shape:
        cure = (
            'both sides need the same rows: RoIs are the same under '
            "type='kdtoolbox.RoIDistiller'; for maps put a ResizeConnector under "
            '`connectors`'
        )
        if student.shape[1] != teacher.shape[1]:
            cure = f'both sides need the same classes (axis 1): {SAME_CLASSES}'
        raise ValueError(f'{shapes} differ in shape; {cure}')
    if student.shape[1] < least:
        raise ValueError(
            f'expected logits of at least {least} classes, got {shapes}: '
            f'{_FEW_CLASSES[least]}; take a loss that compares each class with its '
            "absence, type='kdtoolbox.KDLoss' with use_sigmoid=True, or name wires of "
            'a softmax over all classes, the background among them'
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Refuse anything but one class index per row.

    Raises:
        ValueError: If it is another shape or type.

    Example:
        >>> check_labels(torch.tensor([0, 3, 1]), rows=3)
    """
    if labels.shape != (rows,) or labels.dtype != torch.long:
        raise ValueError(
            f'expected `labels` of shape ({rows},) and type long, got '
            f'{tuple(labels.shape)} of {labels.dtype}; name the wire of the labels of '
            "these rows, such as labels='roi.labels'"
        )


def check_tau(owner: str, tau: float) -> float:
    """Return a temperature that is a finite number above 0.

    Raises:
        ValueError: If it is another.

    Example:
        >>> check_tau('KDLoss', 4.0)
        4.0
    """
    check_above(owner, 0, tau=tau)
    return tau
