"""Correlation congruence (CC, arXiv:1904.01802)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import MAPS_AND_ROWS
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.relations.rows import check_grid, mean_of_pairs, read_rows
from kdtoolbox.registry import MODELS

Kernel = Literal['gaussian', 'bilinear']
GAMMA = 0.4
ORDER = 2


def correlations(rows: Tensor, kernel: Kernel = 'gaussian') -> Tensor:
    r"""Return the correlation of each pair of samples.

    .. math:: e^{-2 \gamma} \sum_{p=0}^{2} \frac{(2 \gamma)^p}{p!} (x_i \cdot x_j)^p,
        \quad \gamma = 0.4

    for rows normalised to length 1. This is the Taylor series of the Gaussian kernel
    :math:`e^{-\gamma \lVert x_i - x_j \rVert^2}`. The bilinear kernel is
    :math:`x_i \cdot x_j` without normalisation.

    Args:
        rows: (R, C).
        kernel: 'gaussian' or 'bilinear'.

    Returns:
        Correlations (R, R).

    Example:
        >>> correlations(torch.eye(2))
        tensor([[0.9526, 0.4493],
                [0.4493, 0.9526]])
    """
    if kernel == 'bilinear':
        return rows @ rows.T
    rows = functional.normalize(rows)
    products = rows @ rows.T
    factors = [(2 * GAMMA) ** p / math.factorial(p) for p in range(ORDER + 1)]
    terms = [factor * products**p for p, factor in enumerate(factors)]
    return math.exp(-2 * GAMMA) * torch.stack(terms).sum(0)


@full_precision
def correlation_distance(
    student: Tensor,
    teacher: Tensor,
    grid: int | None = None,
    kernel: Kernel = 'gaussian',
    legacy_norm: bool = False,
) -> Tensor:
    r"""Compute the squared distance between the correlations of samples.

    .. math:: \frac{1}{R^2} \lVert K(S) - K(T) \rVert_F^2

    with correlations K and the R rows of `read_rows`. R * R correlations are kept.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many maps or rows, with any C; receives no gradient.
        grid: Parts along each side of a map, or None; see `read_rows`.
        kernel: 'gaussian' or 'bilinear'; see `correlations`.
        legacy_norm: Whether to leave out the square of the norm, as torchdistill does.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If the inputs are neither rows nor maps, or their numbers differ.

    Example:
        >>> student, teacher = torch.eye(2), torch.ones(2, 3)
        >>> correlation_distance(student, teacher, kernel='bilinear')
        tensor(6.5000)
    """
    student, teacher = read_rows(student, teacher, grid)
    difference = correlations(student, kernel) - correlations(teacher, kernel)
    if legacy_norm:
        norm = torch.linalg.vector_norm(difference)
        return norm / max(difference.numel(), 1)
    return mean_of_pairs(difference.square())


@MODELS.register_module()
class CCLoss(nn.Module):
    """CC on parts of maps, or on rows. See `correlation_distance`.

    Deviation: the samples are parts of images, because a batch of dense prediction has
    too few images. ``grid=None`` compares whole images, as in the paper. Features are
    compared directly, without learned embeddings.

    Unverified: the norm is squared in the paper, but not in the released codes.

    Args:
        grid: Parts along each side of a map. Each part is one sample.
        kernel: 'gaussian' as in the paper, on rows of length 1, or 'bilinear' on rows
            without normalisation.
        legacy_norm: Whether to leave out the square; see `correlation_distance`.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If ``grid`` is below 1 or ``kernel`` is unknown.

    Example:
        >>> CCLoss()(torch.ones(2, 8, 4, 4), torch.ones(2, 5, 8, 8))
        tensor(0.)
    """

    examples = MAPS_AND_ROWS

    def __init__(
        self,
        grid: int | None = 4,
        kernel: Kernel = 'gaussian',
        legacy_norm: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('CCLoss', 0, loss_weight=loss_weight)
        if kernel not in ('gaussian', 'bilinear'):
            raise ValueError(
                f"CCLoss: kernel={kernel!r}; set kernel='gaussian' or kernel='bilinear'"
            )
        self.grid = check_grid('CCLoss', grid)
        self.kernel = kernel
        self.legacy_norm = legacy_norm
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of maps (N, C, H, W) or rows (R, C)."""
        distance = correlation_distance(
            student, teacher, self.grid, self.kernel, self.legacy_norm
        )
        return self.loss_weight * distance
