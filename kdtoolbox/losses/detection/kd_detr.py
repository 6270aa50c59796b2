"""Classes and boxes of object queries of DETRs (after KD-DETR, arXiv:2211.08071)."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.boxes import to_corners
from kdtoolbox.losses.detection.crosskd import box_loss
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""Smallest divisor, for a teacher that sees no object in any query."""


@full_precision
def query_weights(teacher: Tensor) -> Tensor:
    r"""Compute the teacher's confidence in each query, normalised to sum 1.

    .. math:: w_r = \frac{\max_k \sigma(z_{rk})}{\sum_q \max_k \sigma(z_{qk})}

    Args:
        teacher: Sigmoid logits (R, K), K > 0; receives no gradient.

    Returns:
        The weights (R,), float32 or wider.

    Example:
        >>> query_weights(torch.tensor([[0.0, -9.0], [0.0, 0.0], [-99.0, -99.0]]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    confidence = teacher.amax(1).sigmoid()
    return confidence / confidence.sum().clamp(min=EPS)


@full_precision
def query_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the binary KL divergence of queries, weighted by `query_weights`.

    .. math:: \sum_r w_r \sum_k KL(\sigma(T_{rk}) \,\|\, \sigma(S_{rk}))

    KL is the divergence of two Bernoulli variables. Most queries of a DETR are
    background, so that a plain mean would hide the few queries with an object.

    Unverified: a third party describes the paper's weight as the teacher's largest
    probability; no authors' code was compared.

    Deviation: the weights sum to 1, so that the loss does not grow with the number of
    queries.

    Args:
        student: Sigmoid logits (R, K).
        teacher: Logits (R, K) of the same queries; receives no gradient.

    Returns:
        A scalar, float32 or wider; 0 without queries.

    Raises:
        ValueError: If the logits are not 2-D, if their shapes differ, or if K is 0.

    Example:
        >>> student, teacher = torch.zeros(2, 1), torch.tensor([[3.0], [-99.0]])
        >>> query_class_loss(student, teacher)
        tensor(0.5023)
    """
    check_logits(student, teacher, (2,), least=1)
    # log(1 - sigmoid(x)) would cancel where the sigmoid saturates; logsigmoid(-x) does
    # not.
    yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    rows = (teacher.sigmoid() * yes + (-teacher).sigmoid() * no).sum(1)
    return (rows * query_weights(teacher)).sum()


@MODELS.register_module()
class QueryClassLoss(nn.Module):
    """Compute the loss of the classes of queries. See `query_class_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> QueryClassLoss()(torch.ones(6, 80), torch.ones(6, 80))
        tensor(0.)
    """

    reads_classes = True

    examples = (Example('query logits'),)

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('QueryClassLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted loss of logits (R, K)."""
        return self.loss_weight * query_class_loss(student, teacher)


@full_precision
def query_box_terms(
    student: Tensor, teacher: Tensor, teacher_cls: Tensor
) -> dict[str, Tensor]:
    r"""Compute the L1 and the GIoU term of queries, weighted by `query_weights`.

    .. math:: \sum_r w_r \, \|S_r - T_r\|_1, \quad \sum_r w_r \, (1 - GIoU(S_r, T_r))

    The L1 distance is summed over the four coordinates. Most queries of a DETR are
    background, and their boxes are untrained.

    Unverified: a third party describes both terms and the weights as the paper's; no
    authors' code was compared.

    Deviation: the weights sum to 1, so that the loss does not grow with the number of
    queries.

    Args:
        student: Boxes (R, 4) as (cx, cy, w, h), in fractions of the image.
        teacher: Boxes (R, 4) of the same queries; receives no gradient.
        teacher_cls: The teacher's sigmoid logits (R, K); receives no gradient.

    Returns:
        The scalars ``l1`` and ``giou``, float32 or wider; 0 without queries.

    Raises:
        ValueError: If the boxes are not both (R, 4), or the logits are not (R, K).

    Example:
        >>> student = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
        >>> teacher = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.2, 0.2]])
        >>> sure_of_the_first = torch.tensor([[9.0, 0.0], [-99.0, -99.0]])
        >>> query_box_terms(student, teacher, sure_of_the_first)
        {'l1': tensor(0.2000), 'giou': tensor(0.5000)}
    """
    _check_boxes(student, teacher, teacher_cls)
    weight = query_weights(teacher_cls)
    distance = ((student - teacher).abs().sum(1) * weight).sum()
    # box_loss expects boxes (N, M, 4).
    corners, goals = (to_corners(boxes)[None] for boxes in (student, teacher))
    return dict(l1=distance, giou=box_loss(corners, goals, weight[None], 'giou'))


def _check_boxes(student: Tensor, teacher: Tensor, teacher_cls: Tensor) -> None:
    if student.shape != teacher.shape or student.shape[1:] != (4,):
        raise ValueError(
            'expected boxes (R, 4) of the same queries, got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; name those of '
            "sources=[dict(type='ObjectQueries')]: student='student.query_box', "
            "teacher='teacher.query_box'"
        )
    if teacher_cls.dim() != 2 or len(teacher_cls) != len(student):
        raise ValueError(
            f'expected logits ({len(student)}, K) of the same queries, got '
            f"{tuple(teacher_cls.shape)}; name them as teacher_cls='teacher.query_cls'"
        )


@MODELS.register_module()
class QueryBoxLoss(nn.Module):
    """Compute the L1 and the GIoU loss of the boxes of queries. See `query_box_terms`.

    Args:
        l1_weight: Factor on the L1 term.
        giou_weight: Factor on the GIoU term. Deformable DETR and DINO train their own
            boxes with factors of 5 and 2.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> boxes = torch.full((6, 4), 0.5)
        >>> QueryBoxLoss()(boxes, boxes, torch.zeros(6, 80))
        {'l1': tensor(0.), 'giou': tensor(0.)}
    """

    examples = (Example('query boxes', wires=dict(teacher_cls='query logits')),)

    def __init__(
        self,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'QueryBoxLoss',
            0,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
            loss_weight=loss_weight,
        )
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, teacher_cls: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms of boxes (R, 4) and the teacher's logits (R, K)."""
        terms = query_box_terms(student, teacher, teacher_cls)
        return dict(
            l1=self.loss_weight * self.l1_weight * terms['l1'],
            giou=self.loss_weight * self.giou_weight * terms['giou'],
        )
