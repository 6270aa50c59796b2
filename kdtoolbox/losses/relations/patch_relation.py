"""Similarities between the positions of an image, as distributions.

With the positions of one image in the place of those of a batch this is the loss of
CIRKD (arXiv:2204.06986) between pixels.
"""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.unit_vectors import unit_vectors
from kdtoolbox.registry import MODELS


@full_precision
def patch_divergence(
    student: Tensor, teacher: Tensor, grid: int = 16, tau: float = 0.07
) -> Tensor:
    r"""Compute the divergence between the similarities of positions within images.

    .. math:: mean_{n,p} \, KL(softmax_q(\cos(t_p, t_q) / \tau)
        \,\|\, softmax_q(\cos(s_p, s_q) / \tau))

    Deviation: p and q are averages over the cells of a grid, because N * (H * W)^2
    similarities of large maps take too much memory. The grid is ``grid`` x ``grid``,
    and as small as the smaller of the two maps.

    Args:
        student: Maps (N, C, H, W).
        teacher: As many maps, with any C, H and W; receives no gradient.
        grid: The most positions along each side; N * grid^4 similarities are kept.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider; 0 for maps of one position.

    Raises:
        ValueError: If a map is not 4-D, or the numbers of images differ.

    Example:
        >>> student = torch.eye(4).reshape(1, 4, 2, 2)
        >>> patch_divergence(student, torch.ones(1, 1, 4, 4), tau=1.0)
        tensor(0.1074)
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    if len(student) != len(teacher):
        raise ValueError(
            f'{shapes} have different numbers of images; record modules that see the '
            'same images on both sides'
        )
    height, width = (
        min(grid, *(x.shape[d] for x in (student, teacher))) for d in (2, 3)
    )
    cells = (height, width)
    student, teacher = (_similarities(maps, cells) for maps in (student, teacher))
    return kd_divergence(student / tau, teacher / tau).mean()


def _similarities(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return the cosines (N * P, P) of the P positions of each image."""
    pooled = functional.adaptive_avg_pool2d(maps, cells)
    vectors = unit_vectors(pooled.flatten(2))
    return (vectors.mT @ vectors).flatten(0, 1)


@MODELS.register_module()
class PatchRelationLoss(nn.Module):
    """Relations between the positions of an image; see `patch_divergence`.

    Channels and sizes of student and teacher may differ, so it needs no connector.

    Args:
        grid: The most positions along each side of a map.
        tau: Temperature.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `grid` is below 1, or `tau` is not a finite number above 0.

    Example:
        >>> PatchRelationLoss()(torch.ones(2, 8, 4, 4), torch.ones(2, 5, 8, 8))
        tensor(0.)
    """

    examples = (Example('map', 'map of other channels and size'),)

    def __init__(
        self, grid: int = 16, tau: float = 0.07, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_counts('PatchRelationLoss', grid=grid)
        check_at_least('PatchRelationLoss', 0, loss_weight=loss_weight)
        self.grid = grid
        self.tau = check_tau('PatchRelationLoss', tau)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted divergence of maps (N, C, H, W) as a scalar."""
        divergence = patch_divergence(student, teacher, self.grid, self.tau)
        return self.loss_weight * divergence
