"""Inter-channel correlation (ICKD, arXiv:2202.03680).

A `kdtoolbox.connectors.ConvConnector` with a norm embeds the student's features.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

EPS = 1e-12
"""Rows with a norm up to this value are treated as zero."""


@full_precision
def inter_channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare the normalised Gram matrices of the channels.

    .. math:: \frac{1}{N C} \sum_n \lVert R(S_n) - R(T_n) \rVert_F^2, \quad
        R(X) = norm_{rows}(X X^\top)

    X is C x (H W), and each of the C rows of its Gram matrix is normalised to length 1.
    The matrices are C x C, so student and teacher may differ in size. One image costs
    2 C^2 H W multiplications and C^2 numbers, for each of student and teacher.

    Deviation: a channel that is 0 everywhere gets no gradient through its row, where
    the authors' code divides by 1e-12.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C, H', W'); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N or C differ.

    Example:
        >>> student = torch.eye(2).reshape(1, 2, 2, 1)
        >>> inter_channel_correlation(student, torch.ones(1, 2, 3, 3))
        tensor(0.5858)
    """
    _check_channels(student, teacher)
    difference = _correlation(student) - _correlation(teacher)
    return difference.square().sum() / max(difference.shape[:2].numel(), 1)


def _correlation(maps: Tensor) -> Tensor:
    channels = maps.flatten(2)
    gram = channels @ channels.mT
    norms = torch.linalg.vector_norm(gram, dim=2, keepdim=True)
    return (gram / norms.clamp(min=EPS)).where(norms > EPS, 0)


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f'{shapes} differ in images or channels; put a ConvConnector under '
            '`connectors` and name it as the input of this loss'
        )


@MODELS.register_module()
class ICKDLoss(nn.Module):
    """ICKD on one level; see `inter_channel_correlation`.

    Unverified: the paper's segmentation variant divides the map into patches. No
    published code contains it; here the whole map is one patch.

    Args:
        loss_weight: Factor on the loss. Published values are for classification.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> ICKDLoss(loss_weight=2.5)(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3, 3))
        tensor(0.)
    """

    examples = (Example('map', 'map of other size'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('ICKDLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of maps (N, C, H, W), (N, C, H', W')."""
        return self.loss_weight * inter_channel_correlation(student, teacher)
