"""Channel-wise knowledge distillation (arXiv:2011.13256)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def channel_wise_divergence(
    student: Tensor, teacher: Tensor, tau: float = 1.0
) -> Tensor:
    r"""Compute the channel-wise distillation loss.

    A softmax turns each channel into a distribution over its H * W positions:

    .. math:: \frac{\tau^2}{N C} \sum_{n,c}
        KL(softmax_{hw}(T_{nc} / \tau) \,\|\, softmax_{hw}(S_{nc} / \tau))

    The KL divergence is summed over positions and averaged over N and C, as in the
    paper. Equal maps give 0.

    Args:
        student: Logits or features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 4.0]]]])
        >>> channel_wise_divergence(student, teacher)
        tensor(0.6031)
    """
    check_maps(student, teacher)
    return _ChannelWiseDivergence.apply(student.flatten(2), teacher.flatten(2), tau)


class _ChannelWiseDivergence(torch.autograd.Function):
    """The divergence with its closed-form gradient, on maps (N, C, H * W).

    The gradient dL/dS = tau / (N C) (softmax(S / tau) - softmax(T / tau)) needs one
    saved map, where plain autograd saves three.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tau: float) -> Tensor:
        ctx.scale = tau / (student.shape[0] * student.shape[1])
        # Allocating a map costs as much as computing it, so one buffer is reused.
        scratch = torch.empty_like(student)
        log_p = _log_softmax(student, tau, scratch)
        log_q = _log_softmax(teacher, tau, scratch)
        log_ratio = torch.sub(log_q, log_p, out=scratch)
        q = log_q.exp_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_p.exp_().sub_(q))
        return log_ratio.mul_(q).sum() * (ctx.scale * tau)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (grad * ctx.scale), None, None


def _log_softmax(maps: Tensor, tau: float, scratch: Tensor) -> Tensor:
    scaled = maps if tau == 1 else torch.div(maps, tau, out=scratch)
    return scaled.log_softmax(-1)


@MODELS.register_module()
class CWDLoss(nn.Module):
    """Channel-wise distillation of one level; see `channel_wise_divergence`.

    Args:
        tau: Temperature. The paper uses 4 on segmentation logits; recipes on FPN
            maps use 1.
        loss_weight: Factor on the loss. The paper uses 3 on segmentation logits and
            50 on features.

    Raises:
        ValueError: If `tau` is not above 0, or `loss_weight` is negative.

    Example:
        >>> loss = CWDLoss(tau=4.0, loss_weight=3.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    def __init__(self, tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('CWDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('CWDLoss', tau)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted divergence of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * channel_wise_divergence(student, teacher, self.tau)
