"""Log distance of linearly projected features (SRD, arXiv:2303.11098).

A `kdtoolbox.connectors.ConvConnector` with a norm projects the student, and a
`kdtoolbox.connectors.NormConnector` normalises the teacher. The KL divergence of the
paper is `KDLoss`.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def log_distance(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    r"""Compute the logarithm of the summed powers of the differences.

    .. math:: 2 \log \sum |S - T|^e

    The sum is over the whole batch. The number of values only adds a constant, so the
    gradient does not depend on it. The loss is negative where the sum is below 1.

    Deviation: the sum is clamped to the smallest normal number of its dtype. Equal
    features then give a finite value and no gradient. Published code gives minus
    infinity.

    Args:
        student: Features of any shape, such as (N, C, H, W) or (R, C).
        teacher: The same shape; receives no gradient.
        exponent: The power e, at least 1. A larger power weights large differences
            more.

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
    total = (student - teacher).abs().pow(exponent).sum()
    return 2 * total.clamp(min=torch.finfo(total.dtype).tiny).log()


@MODELS.register_module()
class SRDLoss(nn.Module):
    """SRD on one level or on rows; see `log_distance`.

    Normalise student and teacher per channel over the batch before this loss.

    Unverified: we recall the default exponent of 4 from the paper; the default of
    torchdistill is 1.

    Args:
        exponent: Power of the differences, at least 1.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `exponent` is below 1 or not finite.

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
        """Return the weighted log distance of features of equal shape as a scalar."""
        return self.loss_weight * log_distance(student, teacher, self.exponent)
