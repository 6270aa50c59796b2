"""Attention-guided feature distillation (AttnFD, arXiv:2403.05451): its loss.

The refinement by attention is `kdtoolbox.connectors.CBAMConnector` for the student and
`kdtoolbox.connectors.FixedCBAMConnector` for the teacher.
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
    r"""Compare the directions of two refined maps.

    .. math:: \frac{1}{N} \sum_n \left\lVert
        \frac{S_n}{\lVert S_n \rVert_2} - \frac{T_n}{\lVert T_n \rVert_2}
        \right\rVert_2^2

    which is 2 - 2 cos of the two maps, averaged over the images. A map of zeros has no
    direction; it stays 0 and gets no gradient.

    Deviation: the authors' code takes one norm over the whole batch and still divides
    by N, so that images weigh by their magnitude and the value is about N times
    smaller; `legacy_batch_norm` does so.

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
    # Axis by axis: one norm over millions of values is right to three digits.
    for dim in (3, 2, 1, 0) if whole_batch else (3, 2, 1):
        norms = torch.linalg.vector_norm(norms, dim=dim, keepdim=True)
    return maps / norms.where(norms > 0, math.inf)


@MODELS.register_module()
class AttnFDLoss(nn.Module):
    """AttnFD on one level of refined maps; see `attnfd_loss`.

    Args:
        legacy_batch_norm: Take the norm over the whole batch, as the authors' code.
        loss_weight: Factor on the loss. The authors use 2 with the norm over a batch of
            6 images, which is as strong as 2 / 6 with one norm per image.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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
