"""Relational knowledge distillation (RKD, arXiv:1904.05068)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import MAPS_AND_ROWS
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.relations.rows import check_grid, mean_of_pairs, read_rows
from kdtoolbox.registry import MODELS

EPS = 1e-12
"""The least squared distance, as in the authors' code; below it angles are 0."""


def rkd_terms(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    r"""Compare the distances of pairs of samples and the angles of triples.

    .. math:: distance = mean_{i,j} \, l(d^S_{ij}, d^T_{ij}) \quad
        angle = mean_{i,j,k} \, l(\cos \angle^S_{ijk}, \cos \angle^T_{ijk})

    with the smooth L1 loss l and the Euclidean distance d divided by the mean distance
    of different rows. The means include i = j. R * R * C differences and R * R * R
    cosines are kept for each side.

    Args:
        student: Rows (R, C), float32 or wider.
        teacher: Rows (R, C') of the same dtype.

    Returns:
        The scalars ``distance`` and ``angle``.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_terms(corner, 2 * corner)
        {'distance': tensor(0.), 'angle': tensor(0.)}
    """
    student_distance, student_angle = _relations(student)
    teacher_distance, teacher_angle = _relations(teacher)
    return dict(
        distance=_error(student_distance, teacher_distance),
        angle=_error(student_angle, teacher_angle),
    )


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    return mean_of_pairs(functional.smooth_l1_loss(student, teacher, reduction='none'))


def _relations(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances (R, R) and the cosines (R, R, R) at each first row."""
    difference = rows - rows[:, None]
    square = difference.square().sum(-1)
    distance = square.clamp(min=EPS).sqrt()
    # Equal rows have no direction; their gradient would be divided by 0.
    unit = difference * (1 / distance).where(square > EPS, 0)[..., None]
    distance = distance * ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    mean = distance.sum() / max(len(rows) * (len(rows) - 1), 1)
    return distance / mean.clamp(min=EPS), unit @ unit.transpose(1, 2)


def _spread_rows(rows: Tensor, limit: int) -> Tensor:
    """Return at most `limit` rows, evenly spaced from the first to the last.

    Example:
        >>> _spread_rows(torch.arange(9.0)[:, None], limit=3).flatten()
        tensor([0., 4., 8.])
    """
    if len(rows) <= limit:
        return rows
    index = torch.linspace(0, len(rows) - 1, limit, device=rows.device)
    return rows[index.round().long()]


@MODELS.register_module()
class RKDLoss(nn.Module):
    """RKD on parts of maps, or on rows. See `rkd_terms`.

    Deviation: the samples are parts of images, because a batch of dense prediction has
    too few images. ``grid=None`` compares whole images, as in the paper. If
    there are more than ``max_rows`` samples, only evenly spaced ones are compared,
    because the number of angles is cubic.

    Args:
        grid: Parts along each side of a map. Each part is one sample.
        max_rows: The largest number of samples. 128 samples give 2 million cosines.
        normalize: Whether to normalise the samples to length 1 first, as mmrazor does
            by default.
        distance_weight: Factor on the distances.
        angle_weight: Factor on the angles.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If ``grid`` is below 1 or ``max_rows`` below 2.

    Example:
        >>> RKDLoss(distance_weight=1.0, angle_weight=2.0).max_rows
        128
    """

    examples = MAPS_AND_ROWS

    def __init__(
        self,
        grid: int | None = 4,
        max_rows: int = 128,
        normalize: bool = False,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('RKDLoss', least=2, max_rows=max_rows)
        check_at_least(
            'RKDLoss',
            0,
            distance_weight=distance_weight,
            angle_weight=angle_weight,
            loss_weight=loss_weight,
        )
        self.grid = check_grid('RKDLoss', grid)
        self.max_rows = max_rows
        self.normalize = normalize
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.loss_weight = loss_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of maps (N, C, H, W) or rows (R, C)."""
        pair = read_rows(student, teacher, self.grid)
        rows = [_spread_rows(side, self.max_rows) for side in pair]
        if self.normalize:
            rows = [functional.normalize(side) for side in rows]
        terms = rkd_terms(*rows)
        return dict(
            distance=self.loss_weight * self.distance_weight * terms['distance'],
            angle=self.loss_weight * self.angle_weight * terms['angle'],
        )
