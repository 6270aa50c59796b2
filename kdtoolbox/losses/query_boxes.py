"""Boxes of the object queries of two DETRs (after KD-DETR, arXiv:2211.08071)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.crosskd import box_loss
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.losses.query_classes import query_weights
from kdtoolbox.registry import MODELS


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
