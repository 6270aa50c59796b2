"""Similarity-preserving distillation (SP, arXiv:1907.09682)."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import MAPS_AND_ROWS
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.relations.rows import check_grid, mean_of_pairs, read_rows
from kdtoolbox.registry import MODELS


@full_precision
def similarity_distance(
    student: Tensor, teacher: Tensor, grid: int | None = None
) -> Tensor:
    r"""Compute the squared distance between the similarities of samples.

    .. math:: \frac{1}{R^2} \sum_{i,j} (Q(S) - Q(T))_{ij}^2, \quad
        Q(X)_i = \frac{(X X^\top)_i}{\lVert (X X^\top)_i \rVert_2}

    with the R rows X of `read_rows`. R * R products are kept.

    Args:
        student: Maps (N, C, H, W) or rows (R, C).
        teacher: As many maps or rows, with any C; receives no gradient.
        grid: Parts along each side of a map, or None; see `read_rows`.

    Returns:
        A scalar, float32 or wider; 0 for fewer than two rows.

    Raises:
        ValueError: If the inputs are neither rows nor maps, or their numbers differ.

    Example:
        >>> student, teacher = torch.eye(2), torch.ones(2, 3)
        >>> similarity_distance(student, teacher)
        tensor(0.2929)
    """
    student, teacher = read_rows(student, teacher, grid)
    difference = _similarities(student) - _similarities(teacher)
    return mean_of_pairs(difference.square())


def _similarities(rows: Tensor) -> Tensor:
    return functional.normalize(rows @ rows.T)


@MODELS.register_module()
class SPLoss(nn.Module):
    """SP on parts of maps, or on rows. See `similarity_distance`.

    Deviation: the samples are parts of images, because a batch of dense prediction has
    too few images. ``grid=None`` compares whole images, as in the paper.

    Args:
        grid: Parts along each side of a map. Each part is one sample.
        loss_weight: Factor on the loss. Published codes use 3000 for classification.

    Raises:
        ValueError: If ``grid`` is below 1.

    Example:
        >>> SPLoss()(torch.ones(2, 8, 4, 4), torch.ones(2, 5, 8, 8))
        tensor(0.)
    """

    examples = MAPS_AND_ROWS

    def __init__(self, grid: int | None = 4, loss_weight: float = 3000.0) -> None:
        super().__init__()
        check_at_least('SPLoss', 0, loss_weight=loss_weight)
        self.grid = check_grid('SPLoss', grid)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of maps (N, C, H, W) or rows (R, C)."""
        distance = similarity_distance(student, teacher, self.grid)
        return self.loss_weight * distance
