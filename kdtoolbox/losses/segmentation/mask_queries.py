"""Distillation of matched Mask2Former queries (arXiv:2112.01527).

Student and teacher queries are matched one to one as in DETR (arXiv:2005.12872). The
combination is our own and follows no paper.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import SAME_CLASSES
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.query_matching import (
    match_queries,
    object_confidence,
    query_affinity,
)
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""The least divisor, for batches in which the teacher predicts no object."""


@full_precision
def mask_query_terms(
    student: Tensor,
    teacher: Tensor,
    student_cls: Tensor,
    teacher_cls: Tensor,
    match_class_weight: float = 2.0,
    match_mask_weight: float = 5.0,
) -> dict[str, Tensor]:
    r"""Compare matched queries, weighted by the object confidence of the teacher.

    .. math::
        L_{cls} &= \sum_r w_r \, KL(p^T_r \,\|\, p^S_r) \\
        L_{mask} &= \sum_r w_r \frac{1}{HW} \sum_i KL(m^T_{ri} \,\|\, m^S_{ri}) \\
        L_{dice} &= \sum_r w_r
        \frac{\|m^S_r - m^T_r\|^2}{\|m^S_r\|^2 + \|m^T_r\|^2 + 1}

    over the pairs r of all images, with class posteriors p, mask probabilities m and
    weights :math:`w_r \propto 1 - P^T_r(\text{no object})` of sum 1. The mask term is
    the binary cross entropy minus its minimum, which has the same gradient. The dice
    term has squares in its divisor, so that it is also 0 for equal soft masks.

    Args:
        student: Mask logits (N, Q, H, W) of Q queries.
        teacher: Mask logits (N, Q', H, W) of Q' queries; receives no gradient.
        student_cls: Softmax logits (N, Q, K + 1), 'no object' last.
        teacher_cls: Softmax logits (N, Q', K + 1); receives no gradient.
        match_class_weight: Factor on the agreement of classes in the matching.
        match_mask_weight: Factor on the agreement of masks (dice) in the matching.

    Returns:
        ``cls``, ``mask`` and ``dice``, scalars, float32 or wider.

    Raises:
        ValueError: If the inputs are not queries, or the batch, the classes or the
            sizes of the masks differ.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
        >>> masks = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> terms = mask_query_terms(masks, masks.flip(1), logits, logits.flip(1))
        >>> {name: float(term) for name, term in terms.items()}
        {'cls': 0.0, 'mask': 0.0, 'dice': 0.0}
    """
    _check_queries(student, teacher, student_cls, teacher_cls)
    sides = student, teacher, student_cls, teacher_cls
    affinity = query_affinity(*sides, match_class_weight, match_mask_weight)
    rows, columns = match_queries(affinity)
    images = torch.arange(len(rows), device=rows.device)[:, None]
    student, student_cls = student[images, rows], student_cls[images, rows]
    teacher, teacher_cls = teacher[images, columns], teacher_cls[images, columns]
    weight = object_confidence(teacher_cls)
    weight = weight / weight.sum().clamp(min=EPS)
    classes = _class_divergence(student_cls, teacher_cls)
    masks, dice = _mask_errors(student, teacher)
    return dict(
        cls=(weight * classes).sum(),
        mask=(weight * masks).sum(),
        dice=(weight * dice).sum(),
    )


def _class_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(T || S) (N, M) of logits (N, M, K + 1)."""
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _mask_errors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return divergence and dice error, both (N, M), of mask logits (N, M, H, W)."""
    p, q = student.sigmoid(), teacher.sigmoid()
    # A cross entropy keeps only its two inputs for the backward pass.
    cross = partial(functional.binary_cross_entropy_with_logits, reduction='none')
    divergence = (cross(student, q) - cross(teacher, q)).mean((2, 3))
    error = (p - q).square().sum((2, 3))
    areas = p.square().sum((2, 3)) + q.square().sum((2, 3))
    return divergence, error / (areas + 1)


def _check_queries(
    student: Tensor, teacher: Tensor, student_cls: Tensor, teacher_cls: Tensor
) -> None:
    sides = (('student', student, student_cls), ('teacher', teacher, teacher_cls))
    for side, masks, logits in sides:
        if masks.dim() != 4 or logits.dim() != 3 or masks.shape[:2] != logits.shape[:2]:
            raise ValueError(
                f'{side}: expected mask logits (N, Q, H, W) and class logits '
                f'(N, Q, K + 1) of the same queries, got {tuple(masks.shape)} and '
                f'{tuple(logits.shape)}; make the masks with a QueryMaskConnector and '
                f"record 'decode_head.cls_embed' as the wire `{side}_cls`"
            )
    if len(student) != len(teacher) or student_cls.shape[2] != teacher_cls.shape[2]:
        raise ValueError(
            f'the class logits of student {tuple(student_cls.shape)} and teacher '
            f'{tuple(teacher_cls.shape)} differ in batch or classes; both sides need '
            f'the same classes: {SAME_CLASSES}'
        )
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f'the masks of student {tuple(student.shape)} and teacher '
            f'{tuple(teacher.shape)} differ in size; set `pool` of their '
            'QueryMaskConnectors so that the sizes are equal'
        )


@MODELS.register_module()
class MaskQueryLoss(nn.Module):
    """Distillation of matched mask queries; see `mask_query_terms`.

    The queries are matched again in each step and for each layer of the decoder.

    Unverified: the combination is our own and follows no paper.

    Args:
        cls_weight: Factor on the divergence of classes, and on classes in the
            matching.
        mask_weight: Factor on the divergence of masks.
        dice_weight: Factor on the dice error of masks, and on masks in the matching.
            Mask2Former trains its own queries with weights of 2, 5 and 5.
        loss_weight: Factor on all three terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> logits, masks = torch.zeros(2, 6, 20), torch.zeros(2, 6, 8, 8)
        >>> MaskQueryLoss()(masks, masks, logits, logits)
        {'cls': tensor(0.), 'mask': tensor(0.), 'dice': tensor(0.)}
    """

    reads_classes = True

    examples = (
        Example(
            'mask logits',
            'mask logits of other queries',
            wires=dict(
                student_cls='mask class logits',
                teacher_cls='mask class logits of other queries',
            ),
        ),
    )

    def __init__(
        self,
        cls_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'MaskQueryLoss',
            0,
            cls_weight=cls_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            loss_weight=loss_weight,
        )
        self.cls_weight = cls_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        student_cls: Tensor,
        teacher_cls: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of masks (N, Q, H, W) and logits (N, Q, K + 1)."""
        terms = mask_query_terms(
            student,
            teacher,
            student_cls,
            teacher_cls,
            self.cls_weight,
            self.dice_weight,
        )
        weights = dict(
            cls=self.cls_weight, mask=self.mask_weight, dice=self.dice_weight
        )
        return {
            name: self.loss_weight * weights[name] * term
            for name, term in terms.items()
        }
