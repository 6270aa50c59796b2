"""Attention transfer (AT, arXiv:1612.03928)."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the attention transfer loss of two maps.

    .. math:: mean((Q(S) - Q(T))^2), \quad
        Q(X) = \frac{mean_c X^2}{\lVert mean_c X^2 \rVert_2}

    The norm is over the positions of each image, the mean over N * H * W.

    Deviation: the paper takes the norm of the difference; here, as in the published
    codes, the squared difference is averaged. The paper's loss weights do not apply.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student, teacher = torch.ones(1, 2, 2, 2), torch.zeros(1, 5, 2, 2)
        >>> teacher[..., 0, 0] = 3.0
        >>> attention_transfer(student, teacher)
        tensor(0.2500)
    """
    check_positions(student, teacher)
    return functional.mse_loss(_energy(student), _energy(teacher))


def _energy(maps: Tensor) -> Tensor:
    energy = maps.square().mean(1).flatten(1)
    return functional.normalize(energy)


@MODELS.register_module()
class ATLoss(nn.Module):
    """AT on one level; see `attention_transfer`.

    Args:
        loss_weight: Factor on the loss. Published codes use 1000 for classification
            and 10000 for segmentation.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> ATLoss().loss_weight
        1000.0
    """

    examples = (Example('map', 'map of other channels'),)

    def __init__(self, loss_weight: float = 1000.0) -> None:
        super().__init__()
        check_at_least('ATLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of maps (N, C, H, W), (N, C', H, W)."""
        return self.loss_weight * attention_transfer(student, teacher)
