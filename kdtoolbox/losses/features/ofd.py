"""A comprehensive overhaul of feature distillation (OFD, arXiv:1904.01866)."""

import math

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS

RARE = 1e-3
"""Share of negative values below which their mean is not worth the division."""


def expected_negative(mean: Tensor, std: Tensor) -> Tensor:
    r"""Return the mean of the negative values of normally distributed responses.

    .. math:: m = \mu - \sigma \frac{\varphi(\mu / \sigma)}{\Phi(-\mu / \sigma)}

    or :math:`-3 \sigma` where at most 0.1 % are negative.

    Args:
        mean: Means, such as the biases of a batch norm.
        std: Standard deviations of the same shape, such as the absolute values of its
            weights.

    Returns:
        The margins, at most 0, in the same shape and at least in float32.

    Example:
        >>> expected_negative(torch.tensor([0.0, 9.0]), torch.tensor([1.0, 1.0]))
        tensor([-0.7979, -3.0000])
    """
    mean, std = at_least_float32(mean.detach(), std)
    ratio = mean / std.clamp(min=torch.finfo(std.dtype).tiny)
    share = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = mean - std * density / share.clamp(min=RARE)
    return margin.where(share > RARE, -3 * std)


def partial_squared_error(
    student: Tensor, teacher: Tensor, margin: Tensor | None = None
) -> Tensor:
    r"""Compare features before a ReLU as far as the ReLU lets one see the difference.

    .. math:: \frac{1}{N} \sum_{n,c,h,w} (S - T')^2 \, [S > T' \lor T' > 0], \quad
        T' = \max(T, m_c)

    Where the teacher is not active the student need not be as negative, only not above
    the margin of the channel. It is a sum over all but the images, which weights have
    to allow for.

    Args:
        student: Features (N, C, H, W) before the ReLU, through the connector.
        teacher: The same shape; receives no gradient.
        margin: Margins (C,) below 0; the mean negative response of each channel. By
            default `expected_negative` of the mean and the standard deviation that
            each channel of the teacher has in this batch.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, the shapes differ, or there is not one margin
            per channel.

    Example:
        >>> student = torch.tensor([-9.0, 2.0]).reshape(1, 1, 1, 2)
        >>> teacher = torch.tensor([-5.0, 3.0]).reshape(1, 1, 1, 2)
        >>> partial_squared_error(student, teacher, torch.tensor([-1.0]))
        tensor(1.)
    """
    check_maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        if margin is None:
            std, mean = torch.std_mean(teacher, (0, 2, 3), correction=0)
            margin = expected_negative(mean, std)
        elif margin.numel() != teacher.shape[1]:
            raise ValueError(
                f'{margin.numel()} margins for {teacher.shape[1]} channels; name the '
                'wire `margin.<name>` of the same record as `teacher` as `margin`'
            )
        margin = margin.detach().to(teacher).reshape(-1, 1, 1)
        goal = teacher.maximum(margin)
        seen = (student > goal) | (goal > 0)
        return (student - goal).where(seen, 0).square().sum() / len(student)


@MODELS.register_module()
class OFDLoss(nn.Module):
    """OFD on one level; see `partial_squared_error`.

    A `PreActivationDistiller` records features before their ReLU and gives the margins
    of the teacher's batch norms.

    Deviation: without a wire ``margin``, as behind other norms, the margins come from
    the statistics of the teacher's batch instead of the weights of its norm.

    Args:
        loss_weight: Factor on the loss. The authors divide by 1000 for small images
            and by 10000 for ImageNet; larger maps need less.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> OFDLoss().loss_weight
        0.001
    """

    examples = (Example(), Example(wires=dict(margin='channel margins')))

    def __init__(self, loss_weight: float = 1e-3) -> None:
        super().__init__()
        check_at_least('OFDLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, margin: Tensor | None = None
    ) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W), with margins (C,)."""
        return self.loss_weight * partial_squared_error(student, teacher, margin)
