"""The logarithm of a distance behind a linear projector (SRD, arXiv:2303.11098).

The projector is a `kdtoolbox.connectors.ConvConnector` with a norm, the norm of the
teacher a `kdtoolbox.connectors.NormConnector`; the paper's KL divergence is `KDLoss`.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.registry import MODELS


def log_distance(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    r"""Take the logarithm of a sum of powers over the whole batch.

    .. math:: 2 \log \sum |S - T|^e

    The number of values only adds a constant: the gradient is that of the relative
    distance, however large the maps. Below a sum of 1 the value is negative.

    Deviation: the sum is at least the smallest normal number of its precision, so that
    equal features give a finite value without gradient, where published codes give
    minus infinity.

    Args:
        student: Features of any shape, such as (N, C, H, W) or (R, C).
        teacher: The same shape; receives no gradient.
        exponent: The power e, at least 1. The greater it is, the more the largest
            differences count.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> log_distance(torch.full((2, 4), 2.0), torch.zeros(2, 4), exponent=1.0)
        tensor(5.5452)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ '
            'in shape; put a ResizeConnector (height, width) or a ConvConnector '
            '(channels) under `connectors` and name it as the input of this loss'
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        total = (student - teacher).abs().pow(exponent).sum()
        return 2 * total.clamp(min=torch.finfo(total.dtype).tiny).log()


@MODELS.register_module()
class SRDLoss(nn.Module):
    """SRD on one level or on rows; see `log_distance`.

    Both sides are to be normalised per channel over the batch.

    Unverified: the default exponent of 4 is recalled from the paper; torchdistill has
    1 as a default.

    Args:
        exponent: The power of the differences, at least 1.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `exponent` is no finite number of at least 1.

    Example:
        >>> SRDLoss(exponent=1.0)(torch.full((2, 4), 2.0), torch.zeros(2, 4))
        tensor(5.5452)
    """

    examples = (Example('map'), Example('feature rows'))

    def __init__(self, exponent: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('SRDLoss', 1, exponent=exponent)
        check_at_least('SRDLoss', 0, loss_weight=loss_weight)
        self.exponent = exponent
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted logarithm for features of one shape as a scalar."""
        return self.loss_weight * log_distance(student, teacher, self.exponent)
