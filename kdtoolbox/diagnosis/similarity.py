"""Measure how similar two records are by linear CKA."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_ROWS = 4096
"""Largest number of rows that are compared; the similarity hardly changes with more."""


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """Return the linear CKA of two sets of features (arXiv:1905.00414).

    It is 1 if one is a rotated, scaled or shifted version of the other, and near 0 if
    they have no linear relation. The numbers of features may differ.

    Args:
        first: Features (N, C), one row per example.
        second: Features (N, D) of the same examples.

    Returns:
        A number from 0 to 1, or None if one of the two is constant.

    Raises:
        ValueError: If the numbers of rows differ.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> round(linear_cka(features, 5 - 2 * features), 4)
        1.0
    """
    if len(first) != len(second):
        raise ValueError(
            f'expected two sets of features of the same examples, got {len(first)} '
            f'and {len(second)} rows'
        )
    first, second = (x.double() - x.double().mean(0) for x in (first, second))
    # Without this the products overflow or vanish for extreme features.
    first, second = (x / x.abs().max().clamp(min=1e-300) for x in (first, second))
    own = torch.linalg.matrix_norm(first.T @ first)
    other = torch.linalg.matrix_norm(second.T @ second)
    cross = torch.linalg.matrix_norm(second.T @ first) ** 2
    value = float(cross / (own * other))
    return value if 0 <= value < float('inf') else None


def level_similarity(student: Tensor, teacher: Tensor) -> float | None:
    """Return the linear CKA of two levels, or None if they cannot be compared.

    Each position of a map (N, C, H, W) is an example. The larger map is pooled to the
    size of the smaller one. Tokens (N, L, C) and rows (N, C) have to agree in all but
    the last dimension.

    Example:
        >>> level = torch.rand(1, 3, 4, 4)
        >>> round(level_similarity(level, level.repeat(1, 2, 1, 1)), 4)
        1.0
        >>> level_similarity(level, torch.rand(7, 5)) is None
        True
    """
    student, teacher = student.detach().float(), teacher.detach().float()
    if student.dim() == teacher.dim() == 4:
        sizes = student.shape[2:], teacher.shape[2:]
        height, width = (min(sides) for sides in zip(*sizes, strict=True))
        student, teacher = (
            adaptive_avg_pool2d(x, (height, width)).movedim(1, -1)
            for x in (student, teacher)
        )
    if student.dim() < 2 or student.shape[:-1] != teacher.shape[:-1]:
        return None
    student, teacher = (x.flatten(0, -2) for x in (student, teacher))
    step = -(-len(student) // _ROWS) or 1
    # Evenly spaced rows would hit the same columns of all maps if a side divides them.
    chosen = torch.randperm(len(student), generator=torch.Generator().manual_seed(0))[
        ::step
    ].to(student.device)
    return linear_cka(student[chosen], teacher[chosen]) if len(chosen) > 1 else None
