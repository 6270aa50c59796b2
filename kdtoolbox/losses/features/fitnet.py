"""Hints: the mean squared error of features (FitNets, arXiv:1412.6550).

The regressor is a `kdtoolbox.connectors.ConvConnector`.
"""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.features.mgd import summed_squared_error
from kdtoolbox.registry import MODELS


def mean_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean squared error of two maps.

    .. math:: mean_{n,c,h,w}((S - T)^2)

    Deviation: the paper takes half the sum of squares, and trains the layers up to the
    hint in a first stage. Here, as in the published codes, it is a mean, trained
    together with the other losses.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> import torch
        >>> mean_squared_error(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
        tensor(1.)
    """
    return summed_squared_error(student, teacher) * len(student) / student.numel()


@MODELS.register_module()
class FitNetLoss(nn.Module):
    """Hints on one level; see `mean_squared_error`.

    Args:
        loss_weight: Factor on the loss. Published codes use 100 for classification and
            10 for segmentation.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> FitNetLoss(loss_weight=10.0).loss_weight
        10.0
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('FitNetLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * mean_squared_error(student, teacher)
