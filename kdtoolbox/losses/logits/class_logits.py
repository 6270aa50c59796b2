"""Shared input handling of the losses on class logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.losses.arguments import check_above
from kdtoolbox.losses.inputs import SAME_CLASSES
from kdtoolbox.losses.logits.pixel_labels import IGNORED, pixel_labels
from kdtoolbox.losses.precision import full_precision


@dataclass(frozen=True)
class ClassLogits:
    """Class logits of student and teacher, with the classes on axis 1.

    Attributes:
        student: (R, K) or (N, K, H, W), float32 or wider.
        teacher: The same shape, detached.
        valid: Which rows (R,) or pixels (N, H, W) are not ignored. The logits of
            ignored ones are finite on both sides.
        labels: The true classes, long, 0 where ignored; or None without labels.
    """

    student: Tensor
    teacher: Tensor
    valid: Tensor
    labels: Tensor | None

    def mean(self, values: Tensor) -> Tensor:
        """Average values (R,) or (N, H, W) over the valid ones; 0 without any."""
        # Not a product with the mask: inf * 0 would be NaN.
        return values.where(self.valid, 0).sum() / self.valid.sum().clamp(min=1)


@full_precision
def read_logits(
    student: Tensor,
    teacher: Tensor,
    data_samples: Sequence[Any] = (),
    labels: Tensor | None = None,
    use_sigmoid: bool = False,
) -> ClassLogits:
    """Check logits, cast them to float32 or wider and find the valid positions.

    Pixels with the ``ignore_index`` of the task are not valid. Without ``gt_sem_seg``,
    as in the batch of a detector, all pixels are valid. Rows are valid unless their
    label is `IGNORED`.

    Args:
        student: Logits (R, K) of RoIs or (N, K, H, W) of maps.
        teacher: The same shape.
        data_samples: The batch's samples. Maps take their labels from ``gt_sem_seg``.
        labels: Classes (R,) of rows.
        use_sigmoid: Whether each class has its own sigmoid. Each logit z then becomes a
            row (0, z) of two classes, so that there are K times as many rows. The label
            of such a row is 1 for the true class, else 0.

    Raises:
        ValueError: If the logits are neither rows nor maps, their shapes differ, there
            are too few classes, or the labels do not fit.

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
    """Return the labels of the logits.

    Raises:
        ValueError: If there are no labels.

    Example:
        >>> rows, labels = torch.zeros(2, 5), torch.tensor([3, 0])
        >>> require_labels('NKDLoss', read_logits(rows, rows, labels=labels))
        tensor([3, 0])
    """
    if logits.labels is None:
        raise ValueError(
            f'{owner} reads true classes, and the batch has none: maps need data '
            'samples with `gt_sem_seg`, as in segmentation; for rows name the wire of '
            "their labels, such as labels='roi.labels'"
        )
    return logits.labels


def remove_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Remove the logit of the true class from each row.

    Args:
        logits: (R, K) or (N, K, H, W).
        labels: The true classes (R,) or (N, H, W), long.

    Returns:
        The logits of the other classes, (R, K - 1) or (N, K - 1, H, W).

    Example:
        >>> remove_label(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([1]))
        tensor([[5., 7.]])
    """
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    classes = classes.reshape(1, -1, *[1] * (logits.dim() - 2))
    # Indices from the label on are shifted by one to skip it.
    return logits.gather(1, classes + (classes >= labels[:, None]))


def _filled(logits: Tensor, valid: Tensor) -> Tensor:
    """Replace the logits of ignored rows or pixels by finite, distinct values.

    An infinite logit makes the gradient NaN even where its loss is masked. Equal logits
    have a standard deviation of 0, which some losses divide by.
    """
    dtype, device = logits.dtype, logits.device
    ramp = torch.linspace(0, 1, logits.shape[1], dtype=dtype, device=device)
    return logits.where(valid[:, None], ramp.reshape(1, -1, *[1] * (logits.dim() - 2)))


def _two_classes(logits: Tensor) -> Tensor:
    flat = logits.flatten(0, 1)
    return torch.stack([torch.zeros_like(flat), flat], 1)


_FEW_CLASSES = {
    1: 'there is nothing to compare',
    2: 'a softmax over one class is always 1 and carries no information',
    3: 'with two classes only their order is left after the normalisation',
}
"""Why a loss needs at least this many classes."""


def check_logits(
    student: Tensor, teacher: Tensor, axes: tuple[int, ...], least: int = 2
) -> None:
    """Check that both logits have one shape and enough classes on axis 1.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape.
        axes: The numbers of dimensions that the caller supports.
        least: The least number of classes.

    Raises:
        ValueError: If the number of dimensions is not in `axes`, the shapes differ, or
            there are too few classes.

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
            'both sides need the same rows: both networks get the same RoIs with '
            "sources=[dict(type='RoIResponses')]; for maps put a ResizeConnector under "
            '`connectors`'
        )
        if student.shape[1] != teacher.shape[1]:
            cure = f'both sides need the same classes (axis 1): {SAME_CLASSES}'
        raise ValueError(f'{shapes} differ in shape; {cure}')
    if student.shape[1] < least:
        raise ValueError(
            f'expected logits of at least {least} classes, got {shapes}: '
            f'{_FEW_CLASSES[least]}; take a loss that compares each class on its own, '
            "type='kdtoolbox.KDLoss' with use_sigmoid=True, or name wires of a softmax "
            'over all classes, including the background'
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Check that there is one class index per row.

    Raises:
        ValueError: If the shape is not (rows,) or the dtype is not long.

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
    """Check a temperature and return it.

    Raises:
        ValueError: If it is not a finite number above 0.

    Example:
        >>> check_tau('KDLoss', 4.0)
        4.0
    """
    check_above(owner, 0, tau=tau)
    return tau
