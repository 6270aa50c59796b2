"""Shared input handling of the losses on relations between samples."""

from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.losses.precision import full_precision


@full_precision
def read_rows(
    student: Tensor, teacher: Tensor, grid: int | None
) -> tuple[Tensor, Tensor]:
    """Convert maps of student and teacher to rows, one row per sample.

    Maps (N, C, H, W) are averaged over grid x grid parts per image. Each part is a row:
    N * grid^2 rows of C values for every map size. If `grid` is None, each image is a
    row of C * H * W values, as in classification. Rows (R, C), such as features or
    logits of RoIs, keep their shape.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many maps or rows, with any C, H and W; receives no gradient.
        grid: Parts along each side of a map, or None.

    Returns:
        The rows of the student and of the teacher, float32 or wider.

    Raises:
        ValueError: If the inputs are neither rows nor maps, or their numbers differ.

    Example:
        >>> import torch
        >>> maps = torch.zeros(2, 8, 64, 128)
        >>> [tuple(x.shape) for x in read_rows(maps, maps[:, :5], grid=4)]
        [(32, 8), (32, 5)]
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != teacher.dim() or student.dim() not in (2, 4):
        raise ValueError(
            f'expected rows (R, C) or maps (N, C, H, W) on both sides, got {shapes}'
        )
    if len(student) != len(teacher):
        raise ValueError(
            f'{shapes} have different numbers of samples; both sides need the same '
            "samples. With sources=[dict(type='RoIResponses')] both networks get the "
            'same RoIs'
        )
    return _rows(student, grid), _rows(teacher, grid)


def _rows(values: Tensor, grid: int | None) -> Tensor:
    if values.dim() == 2 or grid is None:
        return values.flatten(1)
    parts = functional.adaptive_avg_pool2d(values, grid)
    return parts.permute(0, 2, 3, 1).flatten(0, 2)


def check_grid(owner: str, grid: int | None) -> int | None:
    """Check a number of parts along each side and return it.

    Raises:
        ValueError: If it is another.

    Example:
        >>> check_grid('SPLoss', 4)
        4
    """
    if grid is not None:
        check_counts(owner, grid=grid)
    return grid


def mean_of_pairs(values: Tensor) -> Tensor:
    """Return the mean of values (R, R) or (R, R, R); 0 without rows.

    Example:
        >>> import torch
        >>> mean_of_pairs(torch.zeros(0, 0))
        tensor(0.)
    """
    return values.sum() / max(values.numel(), 1)
