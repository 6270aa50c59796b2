"""Masked generative distillation (MGD, arXiv:2205.01529): its loss.

`kdtoolbox.connectors.MGDConnector` contains the masks and the generators.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def summed_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the squared error per image, summed over channels and positions.

    .. math:: \frac{1}{N} \sum_{n,c,h,w} (S - T)^2

    This is C * H * W times the mean squared error, so it needs a smaller loss weight.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> summed_squared_error(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
        tensor(128.)
    """
    check_maps(student, teacher)
    return _SquaredError.apply(student, teacher) / len(student)


class _SquaredError(torch.autograd.Function):
    """The sum of squared differences; its backward pass reuses the difference in place.

    Allocating a map costs as much as computing it. Only a second backward pass over a
    retained graph allocates another one.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.difference = student - teacher
        # Row by row: one norm over millions of values has only three correct digits.
        return torch.linalg.vector_norm(ctx.difference, dim=3).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher = ctx.saved_tensors
        step, ctx.difference = ctx.difference, None
        if step is None:
            step = student - teacher
        return step.mul_(2 * grad), None


@MODELS.register_module()
class MGDLoss(nn.Module):
    """MGD on one level of generated maps; see `summed_squared_error`.

    The error covers all positions, hidden and visible.

    Args:
        loss_weight: Factor on the loss. The paper uses 2e-5 for one-stage detectors and
            segmentation, and 5e-7 for two-stage detectors.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> loss = MGDLoss(loss_weight=0.5)
        >>> loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
        tensor(64.)
    """

    examples = (
        Example(
            connector=lambda s: dict(
                type='MGDConnector',
                channels=s.channels,
                num_levels=s.num_levels,
                mask_ratio=0.65,
            ),
        ),
    )

    def __init__(self, loss_weight: float = 2e-5) -> None:
        super().__init__()
        check_at_least('MGDLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * summed_squared_error(student, teacher)
