"""N-to-one representation matching (NORM, arXiv:2305.13803).

What expands the student's channels is a `kdtoolbox.connectors.ConvConnector` without
an activation.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.registry import MODELS


def many_to_one_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Add up the mean squared errors of several student maps to one teacher map.

    .. math:: \sum_{k=1}^{K} mean_{n,c,h,w}((S_k - T)^2)

    which is K times the mean of the errors to K copies of the teacher, without making
    the copies.

    Args:
        student: Features (N, K * C, H, W), the K maps one after the other.
        teacher: Features (N, C, H, W); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, the student's channels are no multiple of the
            teacher's, or images or sizes differ.

    Example:
        >>> many_to_one_error(torch.ones(1, 6, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(3.)
    """
    _check_multiple(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        copies = student.unflatten(1, (-1, teacher.shape[1]))
        return (copies - teacher[:, None]).square().mean((0, 2, 3, 4)).sum()


def _check_multiple(student: Tensor, teacher: Tensor) -> None:
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    (count, width, *size), channels = student.shape, teacher.shape[1]
    if (count, *size) != (len(teacher), *teacher.shape[2:]):
        raise ValueError(
            f'{shapes} differ in size; put a ResizeConnector (height, width) under '
            '`connectors` and name it as the input of this loss'
        )
    if not channels or not width or width % channels:
        raise ValueError(
            f'{shapes}: the channels of the student must be a multiple of those of the '
            f'teacher; put a ConvConnector with out_channels={4 * channels}, or '
            f'another multiple of {channels}, under `connectors`'
        )


@MODELS.register_module()
class NORMLoss(nn.Module):
    """NORM on one level of expanded maps; see `many_to_one_error`.

    Deviation: the authors put the expansion and a contraction into the student itself,
    where they are folded into its next layer after training; here the student stays as
    it is, and the expansion is a connector that is dropped. Their layer norm of the
    logits is left out.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> NORMLoss(2.0)(torch.ones(1, 6, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(6.)
    """

    examples = (Example('map', 'map of other channels'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('NORMLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of maps (N, K * C, H, W) to (N, C, H, W)."""
        return self.loss_weight * many_to_one_error(student, teacher)
