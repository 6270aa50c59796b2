"""Overhaul of feature distillation (OFD, arXiv:1904.01866)."""

import math

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

RARE = 1e-3
"""Probability of negative values up to which the margin is -3 standard deviations."""


@full_precision
def expected_negative(mean: Tensor, std: Tensor) -> Tensor:
    r"""Compute the mean of the negative part of normal distributions.

    .. math:: m = \mu - \sigma \frac{\varphi(\mu / \sigma)}{\Phi(-\mu / \sigma)}

    or :math:`-3 \sigma` where at most 0.1 % of the values are negative.

    Args:
        mean: Means, such as the biases of a batch norm.
        std: Standard deviations of the same shape, such as the absolute weights of that
            batch norm.

    Returns:
        The margins, at most 0, of the same shape, float32 or wider, detached.

    Example:
        >>> expected_negative(torch.tensor([0.0, 9.0]), torch.tensor([1.0, 1.0]))
        tensor([-0.7979, -3.0000])
    """
    mean, std = mean.detach(), std.detach()
    ratio = mean / std.clamp(min=torch.finfo(std.dtype).tiny)
    share = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = mean - std * density / share.clamp(min=RARE)
    return margin.where(share > RARE, -3 * std)


@full_precision
def partial_squared_error(
    student: Tensor, teacher: Tensor, margin: Tensor | None = None
) -> Tensor:
    r"""Compute the OFD loss on features before a ReLU.

    .. math:: \frac{1}{N} \sum_{n,c,h,w} (S - T')^2 \, [S > T' \lor T' > 0], \quad
        T' = \max(T, m_c)

    Where the teacher is inactive, the student is penalised only above the larger of the
    teacher's value and the channel's margin. The errors are summed over channels and
    positions, so the loss grows with the size of the map.

    Args:
        student: Features (N, C, H, W) before the ReLU, projected by a connector.
        teacher: The same shape; receives no gradient.
        margin: Margins (C,), the mean negative response of each channel, below 0;
            receives no gradient. By default they are computed by `expected_negative`
            from the teacher's mean and standard deviation per channel in this batch.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, the shapes differ, or the number of margins is
            not C.

    Example:
        >>> student = torch.tensor([-9.0, 2.0]).reshape(1, 1, 1, 2)
        >>> teacher = torch.tensor([-5.0, 3.0]).reshape(1, 1, 1, 2)
        >>> partial_squared_error(student, teacher, torch.tensor([-1.0]))
        tensor(1.)
    """
    check_maps(student, teacher)
    if margin is None:
        # `std_mean` is ten times slower on a CPU.
        mean = teacher.mean((0, 2, 3), keepdim=True)
        std = (teacher - mean).square().mean((0, 2, 3), keepdim=True).sqrt()
        margin = expected_negative(mean, std)
    elif margin.numel() != teacher.shape[1]:
        raise ValueError(
            f'{margin.numel()} margins for {teacher.shape[1]} channels; set `margin` '
            'to the wire `margin.<name>` of the record that `teacher` names'
        )
    margin = margin.detach().to(teacher.device).reshape(-1, 1, 1)
    goal = teacher.maximum(margin)
    counts = (student > goal) | (goal > 0)
    return (student - goal).where(counts, 0).square().sum() / len(student)


@MODELS.register_module()
class OFDLoss(nn.Module):
    """OFD on one level; see `partial_squared_error`.

    The source `PreActivations` records features before their ReLU and provides the
    margins of the teacher's batch norms.

    Deviation: without a wire ``margin``, for instance after other norms, the margins
    are computed from the teacher's statistics in the batch.

    Args:
        loss_weight: Factor on the loss. The authors divide by 1000 for small images
            and by 10000 for ImageNet; larger maps need a smaller factor.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

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
