"""Probabilistic knowledge transfer (PKT, arXiv:1803.10837)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import MAPS_AND_ROWS
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.relations.rows import check_grid, mean_of_pairs, read_rows
from kdtoolbox.registry import MODELS

EPS = 1e-7
"""Added to norms and inside the logarithm, as in the authors' code."""


@full_precision
def neighbour_divergence(
    student: Tensor, teacher: Tensor, grid: int | None = None
) -> Tensor:
    r"""Compute the divergence between the neighbour probabilities of samples.

    .. math:: \frac{1}{R^2} \sum_{i,j} q_{ij}
        \log \frac{q_{ij} + 10^{-7}}{p_{ij} + 10^{-7}}, \quad
        p_{ij} = \frac{1 + \cos(s_i, s_j)}{\sum_k 1 + \cos(s_i, s_k)}

    q is computed from the teacher in the same way, with the R rows of `read_rows`.
    R * R probabilities are kept. The mean over all pairs is 1 / R of the mean
    divergence of a row.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many maps or rows, with any C; receives no gradient.
        grid: Parts along each side of a map, or None; see `read_rows`.

    Returns:
        A scalar, float32 or wider; 0 for fewer than two rows.

    Raises:
        ValueError: If the inputs are neither rows nor maps, or their numbers differ.

    Example:
        >>> student, teacher = torch.eye(2), torch.tensor([[1.0], [-1.0]])
        >>> neighbour_divergence(student, teacher)
        tensor(0.2027)
    """
    student, teacher = read_rows(student, teacher, grid)
    student_p, teacher_p = _probabilities(student), _probabilities(teacher)
    ratio = (teacher_p + EPS) / (student_p + EPS)
    return mean_of_pairs(teacher_p * ratio.log())


def _probabilities(rows: Tensor) -> Tensor:
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + EPS)
    likely = (rows @ rows.T + 1) / 2
    return likely / likely.sum(1, keepdim=True)


@MODELS.register_module()
class PKTLoss(nn.Module):
    """PKT on parts of maps, or on rows. See `neighbour_divergence`.

    Deviation: the samples are parts of images, because a batch of dense prediction has
    too few images. ``grid=None`` compares whole images, as in the paper.

    Args:
        grid: Parts along each side of a map. Each part is one sample.
        loss_weight: Factor on the loss. Published codes use 30000 for classification.

    Raises:
        ValueError: If ``grid`` is below 1.

    Example:
        >>> PKTLoss()(torch.ones(2, 8, 4, 4), torch.ones(2, 5, 8, 8))
        tensor(0.)
    """

    examples = MAPS_AND_ROWS

    def __init__(self, grid: int | None = 4, loss_weight: float = 30000.0) -> None:
        super().__init__()
        check_at_least('PKTLoss', 0, loss_weight=loss_weight)
        self.grid = check_grid('PKTLoss', grid)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted divergence of maps (N, C, H, W) or rows (R, C)."""
        return self.loss_weight * neighbour_divergence(student, teacher, self.grid)
