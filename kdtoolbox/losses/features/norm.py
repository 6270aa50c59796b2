"""N-to-one representation matching (NORM, arXiv:2305.13803).

A `kdtoolbox.connectors.ConvConnector` without an activation expands the student's
channels.
"""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def many_to_one_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Sum the mean squared errors between K student maps and one teacher map.

    .. math:: \sum_{k=1}^{K} mean_{n,c,h,w}((S_k - T)^2)

    This equals K times the mean squared error to K copies of the teacher, without
    allocating the copies.

    Args:
        student: Features (N, K * C, H, W), K maps concatenated along the channels.
        teacher: Features (N, C, H, W); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, the student's channels are not a multiple of
            the teacher's, or N, H or W differ.

    Example:
        >>> many_to_one_error(torch.ones(1, 6, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(3.)
    """
    _check_multiple(student, teacher)
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

    Deviation: the authors add an expansion and a contraction to the student and fold
    them into its next layer after training. Here the student is unchanged; the
    expansion is a connector, which is dropped after training. Their layer norm of the
    logits is left out.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

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
