"""Cosine distance and smooth L1 of maps (AM-RADIO, arXiv:2312.06709)."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_share
from kdtoolbox.losses.features.nfd import angular_loss
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def cosine_smooth_l1_loss(
    student: Tensor, teacher: Tensor, smooth_l1_weight: float = 0.1
) -> Tensor:
    r"""Mix the cosine distance at each position and the smooth L1 of all values.

    .. math:: (1 - \beta) \, mean_{n,h,w}(1 - \cos(S_p, T_p))
        + \beta \, mean(smoothL1(S - T))

    The smooth L1 is quadratic below a difference of 1. The cosine distance is
    `angular_loss`.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        smooth_l1_weight: The share :math:`\beta` of the smooth L1, from 0 to 1.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1)
        >>> cosine_smooth_l1_loss(student, student.flip(1))
        tensor(1.1500)
    """
    cosine = angular_loss(student, teacher)
    smooth = functional.smooth_l1_loss(student, teacher)
    return (1 - smooth_l1_weight) * cosine + smooth_l1_weight * smooth


@MODELS.register_module()
class CosineSmoothL1Loss(nn.Module):
    """Loss of AM-RADIO on one level; see `cosine_smooth_l1_loss`.

    ``smooth_l1_weight=0`` leaves the cosine distance alone, the loss of RT-DETRv4
    (arXiv:2510.25257) on the last map of the encoder. It is then `AngularLoss`.

    Unverified: the paper gives the weights 0.9 and 0.1 but not where its smooth L1
    becomes linear; 1 is the default of torch.

    Args:
        smooth_l1_weight: The share of the smooth L1; the cosine distance has the rest.
            The paper uses 0.1.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `smooth_l1_weight` is not between 0 and 1.

    Example:
        >>> CosineSmoothL1Loss()(torch.ones(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
        tensor(0.)
    """

    def __init__(self, smooth_l1_weight: float = 0.1, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_share('CosineSmoothL1Loss', smooth_l1_weight=smooth_l1_weight)
        check_at_least('CosineSmoothL1Loss', 0, loss_weight=loss_weight)
        self.smooth_l1_weight = smooth_l1_weight
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        distance = cosine_smooth_l1_loss(student, teacher, self.smooth_l1_weight)
        return self.loss_weight * distance
