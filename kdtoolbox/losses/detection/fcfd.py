"""The error of box deltas of function-consistent features (FCFD, arXiv:2304.11832).

The source `BridgedRoIs` makes the wires of both paths.
"""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def mean_squared_deltas(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean squared error of all box deltas of all RoIs.

    .. math:: mean_{r,i}((S - T)^2)

    Unlike in `roi_regression_loss`, background RoIs and the deltas of all classes
    count: both box heads should give equal outputs, whether the box is right or not.

    Args:
        student: Deltas (R, 4 * K).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider; 0 without RoIs.

    Raises:
        ValueError: If the deltas are not 2-D or the shapes differ.

    Example:
        >>> mean_squared_deltas(torch.full((2, 8), 3.0), torch.zeros(2, 8))
        tensor(9.)
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f'expected box deltas (R, 4 * K) of the same RoIs and classes, got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; name those of '
            "the source BridgedRoIs: student='cross.roi_reg', "
            "teacher='teacher.roi_reg'"
        )
    return (student - teacher).square().sum() / max(student.numel(), 1)


@MODELS.register_module()
class FCFDRegressionLoss(nn.Module):
    """Compute the FCFD loss of the box deltas of all RoIs. See `mean_squared_deltas`.

    Args:
        loss_weight: Factor on the loss. The authors use 1.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> loss = FCFDRegressionLoss()
        >>> loss(torch.ones(6, 8), torch.ones(6, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = (Example('RoI boxes'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('FCFDRegressionLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of deltas (R, 4 * K)."""
        return self.loss_weight * mean_squared_deltas(student, teacher)
