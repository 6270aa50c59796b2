"""The check of losses that compare positions, whatever the channels of each side."""

from torch import Tensor


def check_positions(student: Tensor, teacher: Tensor) -> None:
    """Refuse anything but maps (N, C, H, W) and (N, C', H, W).

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ. Nothing is resized here.

    Example:
        >>> import torch
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
