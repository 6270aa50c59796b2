"""Flow of the solution procedure (FSP, Yim et al., CVPR 2017).

The paper has no arXiv id; its title is *A Gift from Knowledge Distillation*.
"""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def flow_matrix(start: Tensor, end: Tensor) -> Tensor:
    r"""Compute the Gram matrix between the channels of two layers.

    .. math:: G_{n, i, j} = mean_{h, w}(A_{n, i, h, w} \, B_{n, j, h, w})

    The larger map is max-pooled to the size of the smaller one.

    Args:
        start: Features (N, C, H, W) of the earlier layer.
        end: Features (N, C', H', W') of the later layer of the same model.

    Returns:
        The matrices (N, C, C').

    Example:
        >>> flow_matrix(torch.ones(1, 2, 4, 4), torch.full((1, 1, 2, 2), 3.0))
        tensor([[[3.],
                 [3.]]])
    """
    size = [min(pair) for pair in zip(start.shape[2:], end.shape[2:], strict=True)]
    start, end = (_pool(maps, size).flatten(2) for maps in (start, end))
    return start @ end.mT / start.shape[2]


def _pool(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[2:]) == size:
        return maps
    return functional.adaptive_max_pool2d(maps, size)


@MODELS.register_module()
class FSPLoss(nn.Module):
    r"""Mean squared error of the flow matrices of two layers; see `flow_matrix`.

    .. math:: mean_{n, i, j}((G^S - G^T)^2)

    A pair of layers costs C C' H W multiplications and C C' numbers per image, for each
    of student and teacher. Student and teacher may differ in size, but not in channels.

    Deviation: the paper sums the errors and trains this loss before the task. Here, as
    in the published codes, the errors are averaged, so that the weight does not depend
    on the widths, and the loss is trained together with the others.

    Args:
        loss_weight: Factor on the loss. RepDistiller uses 50 for classification.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> loss, maps = FSPLoss(), torch.ones(1, 2, 4, 4)
        >>> loss(maps, 2 * maps, maps, maps)
        tensor(1.)
    """

    examples = (
        Example(
            'map',
            'map of other size',
            wires=dict(
                student_end='map of other channels', teacher_end='map of other channels'
            ),
        ),
    )

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('FSPLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, student_end: Tensor, teacher_end: Tensor
    ) -> Tensor:
        """Return the weighted error of the flows from one layer to a later one.

        Args:
            student: The student's earlier layer (N, C, H, W).
            teacher: The teacher's earlier layer, with the same N and C.
            student_end: The student's later layer (N, C', H', W').
            teacher_end: The teacher's later layer, with the same N and C'.

        Raises:
            ValueError: If a map is not 4-D, or N or C differ.
        """
        _check_pair(student, teacher)
        _check_pair(student_end, teacher_end)
        student_flow = flow_matrix(student, student_end)
        teacher_flow = flow_matrix(teacher, teacher_end)
        return self.loss_weight * functional.mse_loss(student_flow, teacher_flow)


def _check_pair(student: Tensor, teacher: Tensor) -> None:
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f'{shapes} differ in images or channels; put a ConvConnector under '
            '`connectors` and name it as the student wire of this loss'
        )
