"""Classes and masks of the queries of two Mask2Formers, matched one to one.

The matching is that of DETR (arXiv:2005.12872), the queries are those of Mask2Former
(arXiv:2112.01527); distilling the one with the other is this toolbox's own.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import SAME_CLASSES, at_least_float32
from kdtoolbox.losses.segmentation.query_matching import (
    match_queries,
    object_confidence,
    query_affinity,
)
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""The least divisor, for batches in which the teacher sees nothing."""


def mask_query_terms(
    student: Tensor,
    teacher: Tensor,
    student_cls: Tensor,
    teacher_cls: Tensor,
    match_class_weight: float = 2.0,
    match_mask_weight: float = 5.0,
) -> dict[str, Tensor]:
    r"""Compare the matched queries, each as much as the teacher sees something in it.

    .. math::
        L_{cls} &= \sum_r w_r \, KL(p^T_r \,\|\, p^S_r) \\
        L_{mask} &= \sum_r w_r \frac{1}{HW} \sum_i KL(m^T_{ri} \,\|\, m^S_{ri}) \\
        L_{dice} &= \sum_r w_r
        \frac{\|m^S_r - m^T_r\|^2}{\|m^S_r\|^2 + \|m^T_r\|^2 + 1}

    over the pairs r of all images, with class posteriors p, mask probabilities m and
    weights :math:`w_r \propto 1 - P^T_r(\text{no object})` of sum 1. The mask term is
    the binary cross entropy less its least value, which changes no gradient; the dice
    term has squares in its divisor, so that it too is 0 where a soft mask is met.

    Args:
        student: Mask logits (N, Q, H, W).
        teacher: Those of Q' queries (N, Q', H, W); receives no gradient.
        student_cls: Softmax logits (N, Q, K + 1), 'no object' last.
        teacher_cls: Those of Q' queries (N, Q', K + 1); receives no gradient.
        match_class_weight: Share of the classes in the matching.
        match_mask_weight: Share of the masks in it, a dice of probabilities.

    Returns:
        ``cls``, ``mask`` and ``dice``, scalars, float32 or wider.

    Raises:
        ValueError: If these are no queries, or batch, classes or size of the masks
            differ.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
        >>> masks = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> terms = mask_query_terms(masks, masks.flip(1), logits, logits.flip(1))
        >>> {name: float(term) for name, term in terms.items()}
        {'cls': 0.0, 'mask': 0.0, 'dice': 0.0}
    """
    _check_queries(student, teacher, student_cls, teacher_cls)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        mine, theirs = at_least_float32(student_cls, teacher_cls)
        affinity = query_affinity(
            student, teacher, mine, theirs, match_class_weight, match_mask_weight
        )
        rows, columns = match_queries(affinity)
        images = torch.arange(len(rows), device=rows.device)[:, None]
        weight = object_confidence(theirs)[images, columns]
        weight = weight / weight.sum().clamp(min=EPS)
        classes = _class_divergence(mine[images, rows], theirs[images, columns])
        masks, dice = _mask_errors(student[images, rows], teacher[images, columns])
        return dict(
            cls=(weight * classes).sum(),
            mask=(weight * masks).sum(),
            dice=(weight * dice).sum(),
        )


def _class_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(T || S) of logits (N, M, K + 1), (N, M)."""
    mine, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    return (theirs.exp() * (theirs - mine)).sum(-1)


def _mask_errors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the divergence and the dice error of mask logits (N, M, H, W), (N, M)."""
    mine, theirs = student.sigmoid(), teacher.sigmoid()
    # Of a cross entropy only its two inputs are kept for the backward pass.
    cross = partial(functional.binary_cross_entropy_with_logits, reduction='none')
    divergence = (cross(student, theirs) - cross(teacher, theirs)).mean((2, 3))
    error = (mine - theirs).square().sum((2, 3))
    areas = mine.square().sum((2, 3)) + theirs.square().sum((2, 3))
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
                f'{tuple(logits.shape)}; make the one with a QueryMaskConnector and '
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
            'QueryMaskConnectors so that they do not'
        )


@MODELS.register_module()
class MaskQueryLoss(nn.Module):
    """Classes and masks of matched queries. See `mask_query_terms`.

    The queries are matched anew in each step and for each layer of the decoder.

    Unverified: put together for this toolbox; no paper was followed.

    Args:
        class_weight: Factor on the divergence of classes, and on classes in the
            matching.
        mask_weight: Factor on the divergence of masks.
        dice_weight: Factor on the dice error of masks, and on masks in the matching.
            2, 5 and 5 are what Mask2Former trains its own queries with.
        loss_weight: Factor on all three.

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
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'MaskQueryLoss',
            0,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            loss_weight=loss_weight,
        )
        self.class_weight = class_weight
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
        """Return the weighted terms of masks (N, Q, H, W), logits (N, Q, K + 1)."""
        terms = mask_query_terms(
            student,
            teacher,
            student_cls,
            teacher_cls,
            self.class_weight,
            self.dice_weight,
        )
        weights = dict(
            cls=self.class_weight, mask=self.mask_weight, dice=self.dice_weight
        )
        return {
            name: self.loss_weight * weights[name] * term
            for name, term in terms.items()
        }
