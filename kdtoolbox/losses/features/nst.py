"""Neuron selectivity transfer (NST, arXiv:1707.01219)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def channel_discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the squared maximum mean discrepancy between two sets of channels.

    .. math:: k(T, T) + k(S, S) - 2 k(S, T), \quad
        k(A, B) = mean_{n,i,j} \left(
        \frac{a_{n,i} \cdot b_{n,j}}{\lVert a_{n,i} \rVert \, \lVert b_{n,j} \rVert}
        \right)^2

    where :math:`a_{n,i}` is channel i of image n, flattened over its positions. Besides
    the normalised maps only the products (N, C, C') are stored.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student = torch.eye(4)[None, :2].reshape(1, 2, 2, 2)
        >>> channel_discrepancy(student, torch.ones(1, 3, 2, 2))
        tensor(1.)
    """
    check_positions(student, teacher)
    s, t = (functional.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)).square().mean()


@MODELS.register_module()
class NSTLoss(nn.Module):
    """NST with the polynomial kernel on one level; see `channel_discrepancy`.

    Args:
        loss_weight: Factor on the loss. Published codes use 50 for classification.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> NSTLoss().loss_weight
        50.0
    """

    examples = (Example('map', 'map of other channels'),)

    def __init__(self, loss_weight: float = 50.0) -> None:
        super().__init__()
        check_at_least('NSTLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted discrepancy of maps (N, C, H, W), (N, C', H, W)."""
        return self.loss_weight * channel_discrepancy(student, teacher)
