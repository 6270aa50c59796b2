"""Knowledge adaptation: affinity and adaptation of features (arXiv:1903.04688).

Deviation: the paper first trains an auto-encoder on the teacher and compares the
student with its code. Here the student is compared with the teacher's features.
"""

import math

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps, check_positions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.unit_vectors import unit_vectors
from kdtoolbox.registry import MODELS


@full_precision
def affinity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare the cosine similarities of all pairs of positions of an image.

    .. math:: \frac{1}{N (HW)^2} \sum_n \sum_{p,q}
        (\cos(S_p, S_q) - \cos(T_p, T_q))^2

    With unit vectors as rows of S and T the inner sum is
    :math:`\|S^T S\|^2 - 2 \|S^T T\|^2 + \|T^T T\|^2`. This form costs HW * C^2
    and allocates nothing of size (HW)^2, so no pooling is needed. In float32 its
    absolute error is about 1e-7. The similarity of a zero vector to any other is 0.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student = torch.eye(2).reshape(1, 2, 1, 2)
        >>> affinity_loss(student, torch.ones(1, 5, 1, 2))
        tensor(0.5000)
    """
    check_positions(student, teacher)
    student, teacher = (
        unit_vectors(maps.flatten(2), dim=1) for maps in (student, teacher)
    )
    positions = student.shape[2]
    if max(student.shape[1], teacher.shape[1]) < positions:
        errors = _gram(student, student) - 2 * _gram(student, teacher)
        errors = errors + _gram(teacher, teacher)
    else:
        difference = student.mT @ student - teacher.mT @ teacher
        errors = difference.square().sum((1, 2))
    return errors.mean() / positions**2


def _gram(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().sum((1, 2))


@full_precision
def channel_affinity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare the products of positions within each channel.

    .. math:: \frac{1}{N \, HW} \sum_{n,c}
        \lVert s_c s_c^T - t_c t_c^T \rVert_F

    where each channel is normalised to a unit vector over the positions, as in
    torchdistill's ``AffinityLoss``. It is not a multiple of the paper's
    `affinity_loss`. The norms are computed without the matrices:
    :math:`\|ss^T - tt^T\|^2 = \frac{1}{2}(\|s - t\|^2 \|s + t\|^2 + (s^2 - t^2)^2)`.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.eye(2).reshape(1, 1, 2, 2)
        >>> channel_affinity_loss(student, -student)
        tensor(0.)
    """
    check_maps(student, teacher)
    s, t = (unit_vectors(maps.flatten(2), dim=2) for maps in (student, teacher))
    product = vector_norm(s - t, dim=2) * vector_norm(s + t, dim=2)
    # A channel of zeros has length 0, every other channel length 1.
    lengths = s.square().sum(2) - t.square().sum(2)
    norms = vector_norm(torch.stack([product, lengths]), dim=0) / math.sqrt(2)
    return norms.sum(1).mean() / s.shape[2]


@full_precision
def adaptation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean absolute difference of two maps normalised per image.

    .. math:: mean_{n,c,h,w} \left|
        \frac{S_n}{\lVert S_n \rVert_2} - \frac{T_n}{\lVert T_n \rVert_2} \right|

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
        >>> adaptation_loss(student, student.flip(1))
        tensor(1.)
    """
    check_maps(student, teacher)
    student, teacher = (
        unit_vectors(maps.flatten(1), dim=1) for maps in (student, teacher)
    )
    return (student - teacher).abs().mean()


@MODELS.register_module()
class AffinityLoss(nn.Module):
    """Affinity of positions on one level; see `affinity_loss`.

    Args:
        legacy_channels: Use torchdistill's `channel_affinity_loss`, which needs a
            student with the teacher's number of channels.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> AffinityLoss()(torch.ones(2, 4, 8, 8), torch.ones(2, 6, 8, 8)) < 1e-6
        tensor(True)
    """

    examples = (Example('map', 'map of other channels'),)

    def __init__(self, legacy_channels: bool = False, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('AffinityLoss', 0, loss_weight=loss_weight)
        self.legacy_channels = legacy_channels
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W) and (N, C', H, W)."""
        loss = channel_affinity_loss if self.legacy_channels else affinity_loss
        return self.loss_weight * loss(student, teacher)


@MODELS.register_module()
class AdaptationLoss(nn.Module):
    """Adaptation to the teacher on one level; see `adaptation_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> AdaptationLoss(loss_weight=50.0).loss_weight
        50.0
    """

    def __init__(self, loss_weight: float = 50.0) -> None:
        super().__init__()
        check_at_least('AdaptationLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * adaptation_loss(student, teacher)
