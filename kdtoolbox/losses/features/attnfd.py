"""Attention-guided feature distillation (AttnFD, arXiv:2403.05451): its loss.

`kdtoolbox.connectors.CBAMConnector` refines the student's maps by attention,
`kdtoolbox.connectors.FixedCBAMConnector` the teacher's.
"""

import math

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def attnfd_loss(
    student: Tensor, teacher: Tensor, legacy_batch_norm: bool = False
) -> Tensor:
    r"""Compute the squared distance of two refined maps normalised per image.

    .. math:: \frac{1}{N} \sum_n \left\lVert
        \frac{S_n}{\lVert S_n \rVert_2} - \frac{T_n}{\lVert T_n \rVert_2}
        \right\rVert_2^2

    This equals 2 - 2 cos(S_n, T_n), averaged over the images. A map of zeros stays 0
    and gets no gradient.

    Deviation: the authors' code takes one norm over the whole batch and also divides by
    N. Images are then weighted by their magnitude, and the value is about N times
    smaller. Set `legacy_batch_norm` for this behaviour.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        legacy_batch_norm: Take the norm over the whole batch.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([3.0, 0.0, 0.0, 4.0]).reshape(1, 1, 2, 2)
        >>> attnfd_loss(student, student.flip(3))
        tensor(2.)
    """
    check_maps(student, teacher)
    difference = _unit(student, legacy_batch_norm) - _unit(teacher, legacy_batch_norm)
    rows = torch.linalg.vector_norm(difference, dim=3)
    return rows.square().sum() / len(student)


def _unit(maps: Tensor, whole_batch: bool) -> Tensor:
    norms = maps
    # Axis by axis: one norm over millions of values has only three correct digits.
    for dim in (3, 2, 1, 0) if whole_batch else (3, 2, 1):
        norms = torch.linalg.vector_norm(norms, dim=dim, keepdim=True)
    return maps / norms.where(norms > 0, math.inf)


@MODELS.register_module()
class AttnFDLoss(nn.Module):
    """AttnFD on one level of refined maps; see `attnfd_loss`.

    Args:
        legacy_batch_norm: Take the norm over the whole batch, as the authors' code
            does.
        loss_weight: Factor on the loss. The authors use 2 with the norm over a batch of
            6 images, which corresponds to 2 / 6 with one norm per image.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> AttnFDLoss()(torch.ones(2, 8, 4, 4), torch.full((2, 8, 4, 4), 2.0))
        tensor(0.)
    """

    def __init__(
        self, legacy_batch_norm: bool = False, loss_weight: float = 2.0
    ) -> None:
        super().__init__()
        check_at_least('AttnFDLoss', 0, loss_weight=loss_weight)
        self.legacy_batch_norm = legacy_batch_norm
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * attnfd_loss(student, teacher, self.legacy_batch_norm)
