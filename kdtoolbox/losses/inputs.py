"""Check the tensors that losses compare."""

from torch import Tensor


def check_maps(student: Tensor, teacher: Tensor) -> None:
    """Check that two maps have one shape (N, C, H, W).

    Losses resize nothing: a resize or a projection has to be visible in the config.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

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
"""The cure in errors about heads with different classes."""

SAME_HEADS = (
    'both heads need the same classes, anchors per cell and values per anchor: take a '
    "teacher with the student's type of `bbox_head`, `num_classes` and "
    '`anchor_generator`, or distil features instead, such as those of the neck by '
    "type='kdtoolbox.PKDLoss'"
)
"""The cure in errors about dense heads that predict different things."""


def check_predictions(student: Tensor, teacher: Tensor, cure: str = SAME_HEADS) -> None:
    """Check that the predictions of two dense heads have one shape.

    No connector can align predictions with different channels, because each channel
    has a fixed meaning.

    Args:
        student: A map (N, D, H, W).
        teacher: The same shape.
        cure: The fix that the error message suggests if the channels differ.

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
    """Check that two maps (N, C, H, W) and (N, C', H, W) cover the same positions.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

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
