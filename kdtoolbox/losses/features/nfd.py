"""Normalised features and their angles (NFD, arXiv:2207.05256).

NFD: Liu et al., "Normalized Feature Distillation for Semantic Segmentation"
(arXiv:2207.05256). Angles: Liu et al., "Rethinking Knowledge Distillation with Raw
Features for Semantic Segmentation" (WACV 2024).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.unit_vectors import unit_vectors
from kdtoolbox.registry import MODELS

EPS = 1e-5
"""Added to the variance, as in norm layers."""

AXES = {'spatial': (2, 3), 'channel': (1,), 'both': (1, 2, 3)}
"""Axes of the mean and the variance, within each image."""


@full_precision
def nfd_loss(student: Tensor, teacher: Tensor, axes: str = 'spatial') -> Tensor:
    r"""Compute the mean squared error of two standardised maps.

    .. math:: mean_{n,c,h,w}((z(S) - z(T))^2), \quad
        z(X) = \frac{X - mean(X)}{\sqrt{var(X) + 10^{-5}}}

    Mean and variance are taken over the positions of each channel ('spatial'), over the
    channels at each position ('channel'), or over both ('both').

    Unverified: the authors published no code, and we do not know which axes the paper
    uses.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        axes: One of `AXES`.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, the shapes differ, or `axes` is unknown.

    Example:
        >>> student = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> round(float(nfd_loss(student, -5 * student)), 3)
        4.0
    """
    check_maps(student, teacher)
    dims = AXES[_check_axes(axes)]
    return functional.mse_loss(_standard(student, dims), _standard(teacher, dims))


def _standard(maps: Tensor, dims: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(maps, dims, correction=0, keepdim=True)
    return (maps - mean) * (variance + EPS).rsqrt()


def _check_axes(axes: str) -> str:
    if axes not in AXES:
        raise ValueError(
            f'axes must be one of {sorted(AXES)}, got {axes!r}; write for instance '
            "axes='spatial' in the entry of this loss under `losses`"
        )
    return axes


@full_precision
def angular_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean cosine distance of the feature vectors at each position.

    .. math:: mean_{n,h,w} \, \tfrac{1}{2} \left\lVert
        \frac{S_p}{\lVert S_p \rVert_2} - \frac{T_p}{\lVert T_p \rVert_2}
        \right\rVert_2^2 = mean_{n,h,w}(1 - \cos(S_p, T_p))

    A vector of zeros stays 0 and gets no gradient.

    Unverified: the authors published no code.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1)
        >>> angular_loss(student, student.flip(1))
        tensor(1.)
    """
    check_maps(student, teacher)
    student, teacher = unit_vectors(student), unit_vectors(teacher)
    return functional.mse_loss(student, teacher) * student.shape[1] / 2


@MODELS.register_module()
class NFDLoss(nn.Module):
    """NFD on one level; see `nfd_loss`. Unverified.

    Args:
        axes: Axes of mean and variance: 'spatial', 'channel' or 'both'.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `axes` is unknown.

    Example:
        >>> NFDLoss()(torch.eye(4).expand(2, 8, 4, 4), torch.eye(4).expand(2, 8, 4, 4))
        tensor(0.)
    """

    def __init__(self, axes: str = 'spatial', loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('NFDLoss', 0, loss_weight=loss_weight)
        self.axes = _check_axes(axes)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * nfd_loss(student, teacher, self.axes)


@MODELS.register_module()
class AngularLoss(nn.Module):
    """Angular loss on one level; see `angular_loss`. Unverified.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> AngularLoss()(torch.ones(2, 4, 8, 8), torch.full((2, 4, 8, 8), 2.0))
        tensor(0.)
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('AngularLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * angular_loss(student, teacher)
