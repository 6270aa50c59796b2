"""Distillation of activation boundaries (AB, arXiv:1811.03233)."""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_above, check_at_least
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def activation_boundary_error(
    student: Tensor, teacher: Tensor, margin: float = 1.0
) -> Tensor:
    r"""Ask the student to be active where the teacher is, by a squared hinge.

    .. math:: \frac{1}{N} \sum_{n,c,h,w}
        \max(0, \, m - S)^2 \, [T > 0] + \max(0, \, m + S)^2 \, [T \le 0]

    How active the teacher is does not matter, only whether: its features before a ReLU
    and behind it give the same. It is a sum over all but the images, which weights
    have to allow for.

    Args:
        student: Features (N, C, H, W) before the ReLU, through the connector.
        teacher: The same shape; receives no gradient.
        margin: How far from 0 is far enough.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([0.5, 0.5, 3.0]).reshape(1, 3, 1, 1)
        >>> teacher = torch.tensor([0.1, -0.1, 7.0]).reshape(1, 3, 1, 1)
        >>> activation_boundary_error(student, teacher)
        tensor(2.5000)
    """
    check_maps(student, teacher)
    outward = student.where(teacher > 0, -student)
    return (margin - outward).relu().square().sum() / len(student)


@MODELS.register_module()
class ABLoss(nn.Module):
    """AB on one level; see `activation_boundary_error`.

    Deviation: the paper trains on the boundaries first and on the task afterwards;
    here they are one of the losses throughout.

    Args:
        margin: How far from 0 the student is to be, above 0.
        loss_weight: Factor on the loss. Published codes multiply by 3 / 1000 for small
            images; larger maps need less.

    Raises:
        ValueError: If ``margin`` is not above 0.

    Example:
        >>> ABLoss().margin
        1.0
    """

    def __init__(self, margin: float = 1.0, loss_weight: float = 3e-3) -> None:
        super().__init__()
        check_above('ABLoss', 0, margin=margin)
        check_at_least('ABLoss', 0, loss_weight=loss_weight)
        self.margin = margin
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W) as a scalar."""
        error = activation_boundary_error(student, teacher, self.margin)
        return self.loss_weight * error
