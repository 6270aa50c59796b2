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
    r"""Compute a squared hinge on the signs of the teacher's pre-activations.

    .. math:: \frac{1}{N} \sum_{n,c,h,w}
        \max(0, \, m - S)^2 \, [T > 0] + \max(0, \, m + S)^2 \, [T \le 0]

    Only the sign of the teacher's features matters, so features before and after a
    ReLU give the same loss. The errors are summed over channels and positions, so the
    loss grows with the size of the map.

    Args:
        student: Features (N, C, H, W) before the ReLU, projected by a connector.
        teacher: The same shape; receives no gradient.
        margin: Distance from 0, on the teacher's side, from which the student is not
            penalised.

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

    Deviation: the paper trains on this loss first and on the task afterwards; here both
    are trained together.

    Args:
        margin: Distance from 0, on the teacher's side, from which the student is not
            penalised; above 0.
        loss_weight: Factor on the loss. Published codes use 3 / 1000 for small images;
            larger maps need a smaller factor.

    Raises:
        ValueError: If `margin` is not above 0.

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
