"""Loss of variational information distillation (VID, arXiv:1904.05835).

`kdtoolbox.connectors.RegressorConnector` predicts the teacher's features.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_above, check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

EPS = 1e-5
"""Smallest variance, as in the published codes."""


@full_precision
def gaussian_code_length(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    r"""Compute the negative log-likelihood of the teacher under normal distributions.

    .. math:: mean_{n,c,h,w} \tfrac{1}{2} \left(
        \frac{(T - \mu)^2}{v_c} + \log v_c \right)

    The constant of the density is omitted. Minimising the loss maximises a lower bound
    on the mutual information. The loss is negative for small variances.

    Args:
        mean: Predictions (N, C, H, W) of the student.
        teacher: The same shape; receives no gradient.
        variance: Variances (C,) of the channels, above 0.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> maps = torch.ones(1, 2, 2, 2)
        >>> gaussian_code_length(maps, maps + 2, torch.ones(2))
        tensor(2.)
    """
    check_maps(mean, teacher)
    errors = (teacher - mean).square().mean((0, 2, 3))
    return (errors / variance + variance.log()).mean() / 2


@MODELS.register_module()
class VIDLoss(nn.Module):
    """VID with a learned variance per channel and level; see `gaussian_code_length`.

    The variances are trained together with the student. The loss may become negative.

    Args:
        channels: Channels of both maps.
        num_levels: Number of levels of the wires.
        init_variance: Initial variance, above 1e-5.
        loss_weight: Factor on the loss. Published code uses 1.

    Raises:
        ValueError: If `init_variance` is not above the smallest variance of 1e-5.

    Example:
        >>> VIDLoss(channels=2).variances(0).detach()
        tensor([5.0000, 5.0000])
    """

    examples = (
        Example(arguments=lambda s: dict(channels=s.channels, num_levels=s.num_levels)),
    )

    def __init__(
        self,
        channels: int,
        num_levels: int = 1,
        init_variance: float = 5.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('VIDLoss', channels=channels, num_levels=num_levels)
        check_above('VIDLoss', EPS, init_variance=init_variance)
        check_at_least('VIDLoss', 0, loss_weight=loss_weight)
        start = math.log(math.expm1(init_variance - EPS))
        self.scales = nn.Parameter(torch.full((num_levels, channels), start))
        self.loss_weight = loss_weight

    def variances(self, level: int) -> Tensor:
        """Return the variances (C,) of a level, float32 or wider."""
        scales = self.scales[level]
        dtype = torch.promote_types(scales.dtype, torch.float32)
        return functional.softplus(scales.to(dtype)) + EPS

    def forward(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Return the weighted code length of a map (N, C, H, W) as a scalar.

        Raises:
            ValueError: If the level or its channels do not match the config.
        """
        num_levels, channels = self.scales.shape
        if level >= num_levels or teacher.shape[1] != channels:
            raise ValueError(
                f'VIDLoss has channels={channels}, num_levels={num_levels} and got '
                f'{teacher.shape[1]} channels at level {level}; set channels='
                f'{teacher.shape[1]} and num_levels to the number of levels'
            )
        variance = self.variances(level)
        return self.loss_weight * gaussian_code_length(student, teacher, variance)
