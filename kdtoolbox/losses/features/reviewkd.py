"""Knowledge review (ReviewKD, arXiv:2104.09044): its loss.

`kdtoolbox.connectors.ABFConnector` fuses the levels.
"""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

POOLS = (4, 2, 1)
"""Side lengths of the pooled maps; each has half the weight of the one before."""


@full_precision
def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean squared error of two maps at several resolutions.

    .. math:: \frac{mse(S, T) + \sum_k 2^{-k} mse(P_k(S), P_k(T))}{1 + \sum_k 2^{-k}}

    :math:`P_k` is average pooling to 4 x 4, 2 x 2 and 1 x 1. Sizes not smaller
    than the map are skipped.

    Deviation: the authors' code checks only the height against the pooled size.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> hierarchical_context_loss(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
        tensor(1.)
    """
    check_maps(student, teacher)
    # Pooling is linear, so pooling the difference replaces pooling both maps.
    difference = student - teacher
    loss, total, weight = difference.square().mean(), 1.0, 1.0
    for side in POOLS:
        if side < min(student.shape[2:]):
            weight /= 2
            pooled = functional.adaptive_avg_pool2d(difference, side)
            loss = loss + weight * pooled.square().mean()
            total += weight
    return loss / total


@MODELS.register_module()
class HCLLoss(nn.Module):
    """The loss of ReviewKD on one level; see `hierarchical_context_loss`.

    Args:
        loss_weight: Factor on the loss. The authors use 1 for Faster R-CNN R101 to R50
            and for RetinaNet.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> HCLLoss().loss_weight
        1.0
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('HCLLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * hierarchical_context_loss(student, teacher)
