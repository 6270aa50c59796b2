"""Knowledge distillation via the Pearson correlation (PKD, arXiv:2207.02039)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.registry import MODELS

EPS = 1e-6
"""Added to the standard deviation, as in the authors' code."""


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the PKD loss: the squared error of maps standardised per channel.

    .. math:: \tfrac{1}{2} \, mean((z(S) - z(T))^2), \quad
        z(X) = (X - mean_c(X)) / (std_c(X) + 10^{-6})

    The statistics of channel c are taken over N, H and W of this process. The standard
    deviation is unbiased, as in the authors' code, so the value is (n - 1) / n times
    1 - Pearson r as in the paper, with n = N * H * W.

    Deviation: with a single value per channel (n = 1) the loss and its gradient are 0,
    where the authors' code gives NaN.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([1.0, 2.0, 4.0, 1.0]).reshape(1, 1, 2, 2)
        >>> pkd_loss(student, 1 - student)
        tensor(1.5000)
    """
    check_maps(student, teacher)
    # Without `full_precision`, which would store float32 copies of half-precision maps.
    with torch.autocast(student.device.type, enabled=False):
        return _PearsonDistance.apply(student, teacher.detach())


class _PearsonDistance(torch.autograd.Function):
    """The loss with its closed-form gradient, which is linear in both maps.

    The backward pass needs only the maps and four numbers per channel. Half-precision
    maps are not copied: every operation combines them with float32 or wider statistics,
    which determine the precision of the result.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        # One value per channel would give 0 / 0.
        freedom = max(student.numel() // student.shape[1] - 1, 1)
        s_mean, t_mean = _channel_means(student, teacher)
        # Centre first: the gain of a constant channel is 1e6 and would amplify the
        # rounding error of its mean.
        s_centred, t_centred = student - s_mean, teacher - t_mean
        s_std = (_channel_squares(s_centred) / freedom).sqrt()
        t_std = (_channel_squares(t_centred) / freedom).sqrt()
        s_gain, t_gain = 1 / (s_std + EPS), 1 / (t_std + EPS)
        # In place, because allocating a map costs as much as computing it.
        difference = s_centred.mul_(s_gain).addcmul_(t_centred, -t_gain)
        distance = _channel_squares(difference)

        # The part of the gradient that flows through the student's std: the projection
        # <z(S), z(S) - z(T)> / <z(S), S - mean>, 0 for a constant channel.
        s_unit, t_unit = s_std * s_gain, t_std * t_gain
        share = (distance / freedom + s_unit.square() - t_unit.square()) / (2 * s_unit)
        share = torch.where(s_std > 0, share, 0)
        s_slope = s_gain.square() * (1 - share) / student.numel()
        t_slope = -s_gain * t_gain / student.numel()
        ctx.save_for_backward(student, teacher, s_mean, t_mean, s_slope, t_slope)
        return distance.sum() / (2 * student.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher, s_mean, t_mean, s_slope, t_slope = ctx.saved_tensors
        step = (student - s_mean).mul_(grad * s_slope)
        step.addcmul_(teacher - t_mean, grad * t_slope)
        return step.to(student.dtype), None


def _channel_means(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    dims = (0, 2, 3)
    return (
        student.mean(dims, keepdim=True, dtype=dtype),
        teacher.mean(dims, keepdim=True, dtype=dtype),
    )


def _channel_squares(maps: Tensor) -> Tensor:
    # Per image first: one norm over (0, 2, 3) is several times slower on a CPU.
    norms = torch.linalg.vector_norm(maps, dim=(2, 3), keepdim=True)
    return norms.square().sum(0, keepdim=True)


@MODELS.register_module()
class PKDLoss(nn.Module):
    """PKD on one level; see `pkd_loss`.

    Args:
        loss_weight: Factor on the loss. The paper uses 6 for two-stage and 10 for
            one-stage detectors.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> loss = PKDLoss(loss_weight=6.0)
        >>> loss(torch.eye(4).expand(2, 8, 4, 4), torch.eye(4).expand(2, 8, 4, 4))
        tensor(0.)
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('PKDLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * pkd_loss(student, teacher)
