"""Object queries of two DETRs (after KD-DETR, arXiv:2211.08071)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.crosskd import box_loss
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.losses.logits.class_logits import check_logits
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""The least divisor, for queries of which the teacher sees no object in any."""


def query_weights(teacher: Tensor) -> Tensor:
    r"""Return how much the teacher sees an object in each query.

    .. math:: w_r = \frac{\max_k \sigma(z_{rk})}{\sum_q \max_k \sigma(z_{qk})}

    Args:
        teacher: Sigmoid logits (R, K), K > 0; receives no gradient.

    Returns:
        The weights (R,), in sum 1, float32 or wider.

    Example:
        >>> query_weights(torch.tensor([[0.0, -9.0], [0.0, 0.0], [-99.0, -99.0]]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    _, logits = at_least_float32(teacher, teacher)
    confidence = logits.amax(1).sigmoid()
    return confidence / confidence.sum().clamp(min=EPS)


def query_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare class probabilities query by query, as sure as the teacher is of each.

    .. math:: \sum_r w_r \sum_k KL(\sigma(T_{rk}) \,\|\, \sigma(S_{rk}))

    with the weights of `query_weights` and the divergence of two Bernoulli variables.
    Most queries of a DETR lie on background; a plain mean over all would drown the few
    that hold an object.

    Unverified: the paper weights a query by the teacher's largest probability too, as a
    third party tells it; no authors' code was compared.

    Deviation: the weights sum to 1, so that the number of queries changes nothing.

    Args:
        student: Sigmoid logits (R, K).
        teacher: Those of the same queries; receives no gradient.

    Returns:
        A scalar, float32 or wider; 0 without queries.

    Raises:
        ValueError: If the logits are no rows, their shapes differ, or K is 0.

    Example:
        >>> student, teacher = torch.zeros(2, 1), torch.tensor([[3.0], [-99.0]])
        >>> query_class_loss(student, teacher)
        tensor(0.5023)
    """
    check_logits(student, teacher, (2,), least=1)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        # Both logarithms, so that nothing cancels where the sigmoid saturates.
        yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
        no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
        rows = (teacher.sigmoid() * yes + (-teacher).sigmoid() * no).sum(1)
        return (rows * query_weights(teacher)).sum()


@MODELS.register_module()
class QueryClassLoss(nn.Module):
    """Class probabilities of the same queries. See `query_class_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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


def query_box_terms(
    student: Tensor, teacher: Tensor, teacher_cls: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Compare boxes query by query, each as much as the teacher sees an object in it.

    .. math:: \sum_r w_r \, \|S_r - T_r\|_1, \quad \sum_r w_r \, (1 - GIoU(S_r, T_r))

    with the weights of `query_weights`. The L1 distance is summed over the four
    coordinates. Most queries of a DETR lie on background, where its boxes are
    untrained.

    Unverified: both terms and the weights are the paper's as a third party tells it; no
    authors' code was compared.

    Deviation: the weights sum to 1, so that the number of queries changes nothing.

    Args:
        student: Boxes (R, 4) as (cx, cy, w, h), in fractions of the image.
        teacher: The boxes of the same queries; receives no gradient.
        teacher_cls: The teacher's sigmoid logits (R, K); receives no gradient.

    Returns:
        The L1 and the GIoU term, scalars, float32 or wider; 0 without queries.

    Raises:
        ValueError: If the boxes are not of one shape (R, 4), or the logits are not
            those of R queries.

    Example:
        >>> student = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
        >>> teacher = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.2, 0.2]])
        >>> sure_of_the_first = torch.tensor([[9.0, 0.0], [-99.0, -99.0]])
        >>> query_box_terms(student, teacher, sure_of_the_first)
        (tensor(0.2000), tensor(0.5000))
    """
    _check_boxes(student, teacher, teacher_cls)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        weight = query_weights(teacher_cls).to(student.dtype)
        distance = ((student - teacher).abs().sum(1) * weight).sum()
        # As corners of one image: the loss on boxes takes (N, M, 4).
        mine, theirs = (_corners(boxes)[None] for boxes in (student, teacher))
        return distance, box_loss(mine, theirs, weight[None], 'giou')


def _corners(boxes: Tensor) -> Tensor:
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([center - half, center + half], 1)


def _check_boxes(student: Tensor, teacher: Tensor, teacher_cls: Tensor) -> None:
    if student.shape != teacher.shape or student.shape[1:] != (4,):
        raise ValueError(
            'expected boxes (R, 4) of the same queries, got student '
            f'{tuple(student.shape)} and teacher {tuple(teacher.shape)}; name those of '
            "type='kdtoolbox.QueryDistiller': student='student.query_box', "
            "teacher='teacher.query_box'"
        )
    if teacher_cls.dim() != 2 or len(teacher_cls) != len(student):
        raise ValueError(
            f'expected logits ({len(student)}, K) of the same queries, got '
            f"{tuple(teacher_cls.shape)}; name them as teacher_cls='teacher.query_cls'"
        )


@MODELS.register_module()
class QueryBoxLoss(nn.Module):
    """L1 and GIoU between the boxes of the same queries. See `query_box_terms`.

    Args:
        l1_weight: Factor on the L1 term.
        giou_weight: Factor on the GIoU term. 5 and 2 are what Deformable DETR and DINO
            train their own boxes with.
        loss_weight: Factor on both.

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
        """Return the weighted terms of boxes (R, 4), the teacher's logits (R, K)."""
        distance, giou = query_box_terms(student, teacher, teacher_cls)
        return dict(
            l1=self.loss_weight * self.l1_weight * distance,
            giou=self.loss_weight * self.giou_weight * giou,
        )
