"""What the losses on relations between samples share: maps as rows."""

from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.losses.inputs import at_least_float32


def read_rows(
    student: Tensor, teacher: Tensor, grid: int | None
) -> tuple[Tensor, Tensor]:
    """Turn both sides into rows, of which relations are made; lift their precision.

    Maps (N, C, H, W) are averaged over a grid x grid of parts, each of which is a row:
    N * grid^2 rows of C values, however large the maps are. Where `grid` is None an
    image is a row, of all its values: the samples of classification. Rows (R, C), such
    as features or logits of RoIs, stay what they are.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many maps or rows, whose C may be another, and whose H and W, too;
            receives no gradient.
        grid: Parts along each side of a map.

    Returns:
        Rows of the student and of the teacher, float32 or wider.

    Raises:
        ValueError: If they have another number of axes or are not as many.

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
            f'{shapes} are not as many; both sides need the same samples. RoIs of the '
            "two sides are the same under type='kdtoolbox.RoIDistiller'"
        )
    student, teacher = at_least_float32(student, teacher)
    return _rows(student, grid), _rows(teacher, grid)


def _rows(values: Tensor, grid: int | None) -> Tensor:
    if values.dim() == 2 or grid is None:
        return values.flatten(1)
    parts = functional.adaptive_avg_pool2d(values, grid)
    return parts.permute(0, 2, 3, 1).flatten(0, 2)


def check_grid(owner: str, grid: int | None) -> int | None:
    """Return a number of parts along each side that is at least 1, or None.

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
    """Average values (R, R) or (R, R, R); 0 without rows.

    Example:
        >>> import torch
        >>> mean_of_pairs(torch.zeros(0, 0))
        tensor(0.)
    """
    return values.sum() / max(values.numel(), 1)
