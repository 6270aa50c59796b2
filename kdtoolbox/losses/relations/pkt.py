"""Probabilistic knowledge transfer (PKT, arXiv:1803.10837)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import MAPS_AND_ROWS
from kdtoolbox.losses.relations.rows import check_grid, mean_of_pairs, read_rows
from kdtoolbox.registry import MODELS

EPS = 1e-7
"""Added to norms and inside the logarithm, as in the authors' code."""


def neighbour_divergence(
    student: Tensor, teacher: Tensor, grid: int | None = None
) -> Tensor:
    r"""Compare how likely each sample picks each other as its neighbour.

    .. math:: \frac{1}{R^2} \sum_{i,j} q_{ij}
        \log \frac{q_{ij} + 10^{-7}}{p_{ij} + 10^{-7}}, \quad
        p_{ij} = \frac{1 + \cos(s_i, s_j)}{\sum_k 1 + \cos(s_i, s_k)}

    and q in the same way from the teacher, with the R rows that `read_rows` makes of
    the maps: R * R probabilities are held. The mean over all pairs makes it 1 / R of
    the mean divergence of a row.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many, whose C may be another; receives no gradient.
        grid: As `read_rows` takes it.

    Returns:
        A scalar, float32 or wider; 0 for fewer than two rows.

    Raises:
        ValueError: If they are no rows or maps, or not as many.

    Example:
        >>> student, teacher = torch.eye(2), torch.tensor([[1.0], [-1.0]])
        >>> neighbour_divergence(student, teacher)
        tensor(0.2027)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = read_rows(student, teacher, grid)
        mine, goal = _probabilities(student), _probabilities(teacher)
        return mean_of_pairs(goal * ((goal + EPS) / (mine + EPS)).log())


def _probabilities(rows: Tensor) -> Tensor:
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + EPS)
    likely = (rows @ rows.T + 1) / 2
    return likely / likely.sum(1, keepdim=True)


@MODELS.register_module()
class PKTLoss(nn.Module):
    """PKT on parts of maps, or on rows. See `neighbour_divergence`.

    Deviation: the samples are parts of images instead of images, of which a batch of
    dense prediction has too few; ``grid=None`` goes back to images.

    Args:
        grid: Parts along each side of a map, each of which is a sample.
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
