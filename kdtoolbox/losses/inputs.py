"""Checks and the precision rule shared by the losses."""

import torch
from torch import Tensor


def check_maps(student: Tensor, teacher: Tensor) -> None:
    """Refuse anything but two maps of one shape (N, C, H, W).

    Raises:
        ValueError: If a map is not 4-D or the two shapes differ. Nothing is resized
            here: a resize or a projection is a visible choice of the config.

    Example:
        >>> check_maps(torch.ones(1, 8, 4, 4), torch.ones(1, 8, 4, 4))
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    if student.shape != teacher.shape:
        raise ValueError(
            f'{shapes} differ in shape; put a ResizeConnector (height, width) or a '
            'ConvConnector (channels) under `connectors` and name it as the input '
            'of this loss; for class logits take a teacher of the same classes'
        )


SAME_CLASSES = (
    "take a teacher trained on the student's classes, with the same `num_classes` in "
    'its head, or distil features instead of predictions, such as those of the neck by '
    "type='kdtoolbox.PKDLoss'"
)
"""What to do where the predictions of two heads are not of the same classes."""

SAME_HEADS = (
    'both heads need the same classes, anchors per cell and values per anchor: take a '
    "teacher with the student's type of `bbox_head`, `num_classes` and "
    '`anchor_generator`, or distil features instead, such as those of the neck by '
    "type='kdtoolbox.PKDLoss'"
)
"""What to do where the predictions of two dense heads are not of the same things."""


def check_predictions(student: Tensor, teacher: Tensor, cure: str = SAME_HEADS) -> None:
    """Refuse anything but the predictions of two dense heads that are alike.

    Other than features, predictions of other channels have other meanings, which no
    connector brings together.

    Args:
        student: A map (N, D, H, W).
        teacher: The same shape.
        cure: What to do where the channels differ.

    Raises:
        ValueError: If a map is not 4-D or the two shapes differ.

    Example:
        >>> check_predictions(torch.ones(1, 80, 4, 4), torch.ones(1, 80, 4, 4))
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, D, H, W), got {shapes}')
    if student.shape == teacher.shape:
        return
    if student.shape[1] == teacher.shape[1]:
        cure = 'record the same levels of two heads with the same strides'
    raise ValueError(f'{shapes} differ in shape; {cure}')


def check_positions(student: Tensor, teacher: Tensor) -> None:
    """Refuse anything but maps (N, C, H, W) and (N, C', H, W).

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ. Nothing is resized here.

    Example:
        >>> check_positions(torch.ones(1, 8, 4, 5), torch.ones(1, 16, 4, 5))
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    sizes = [(len(maps), *maps.shape[2:]) for maps in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f'{shapes} differ in size; put a ResizeConnector (height, width) under '
            '`connectors` and name it as the input of this loss'
        )


def at_least_float32(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Lift both sides to one dtype no narrower than float32; detach the teacher.

    float64 stays float64; the student's gradient comes back in its own dtype.

    Example:
        >>> student, teacher = at_least_float32(torch.ones(2).half(), torch.ones(2))
        >>> student.dtype
        torch.float32
    """
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)
