"""Prediction-guided distillation (PGD, arXiv:2203.05469): its losses.

`pgd_masks` computes the masks that both losses use.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import (
    check_above,
    check_at_least,
    check_counts,
    check_share,
)
from kdtoolbox.losses.detection.pgd_masks import teacher_masks
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def pgd_cls_terms(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    tau: float = 0.8,
    legacy_cross_image: bool = False,
) -> dict[str, Tensor]:
    r"""Compute the PGD terms of the features of two classification towers.

    With the spatial attention and, at each position, the channel attention

    .. math:: A^S(X) = H W \, softmax_{hw}(mean_c |X| / \tau), \quad
        A^C(X) = C \, softmax_c(|X| / \tau)

    the terms are

    - foreground, background: :math:`M A^S(T) A^C(T) (S - T)^2`. For each mask M:
      normalise per image by its nonzero count, sum, divide by N;
    - attention: the sum of :math:`|A^C(S) - A^C(T)|` divided by N H W, plus the sum of
      :math:`|A^S(S) - A^S(T)|` divided by N.

    Deviation: each image uses its own masks. In the authors' code a broadcast of wrong
    shapes gives each image the sum of all masks of the batch (`legacy_cross_image`).

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        masks: Weights (N, H, W) of the foreground and of the background.
        tau: Temperature of both attentions, above 0.
        legacy_cross_image: Use the masks as the authors' code does. The authors tuned
            their factors that way, with two images per GPU.

    Returns:
        The scalars ``foreground``, ``background`` and ``attention``, float32 or wider.

    Raises:
        ValueError: If the maps differ in shape, or the masks in size.

    Example:
        >>> maps, masks = torch.ones(2, 8, 4, 4), (torch.ones(2, 4, 4),) * 2
        >>> [term.item() for term in pgd_cls_terms(maps, maps, masks).values()]
        [0.0, 0.0, 0.0]
    """
    _check_sizes(student, teacher, masks[0])
    squares, channel = _compare_channels(student, teacher, tau)
    goal = _spatial_attention(teacher, tau)
    spatial = (_spatial_attention(student, tau) - goal).abs().sum()
    terms = {
        name: (goal * squares * _normalise(mask, legacy_cross_image)).sum()
        for name, mask in zip(('foreground', 'background'), masks, strict=True)
    }
    terms['attention'] = channel.sum() / goal[0].numel() + spatial
    return {name: term / len(student) for name, term in terms.items()}


@full_precision
def pgd_reg_terms(
    student: Tensor, teacher: Tensor, mask: Tensor, tau: float = 0.8
) -> dict[str, Tensor]:
    r"""Compute the PGD terms of the features of two regression towers.

    Let P be the number of positions of the batch where the mask is not 0, and
    :math:`A^C` the channel attention of `pgd_cls_terms`. The terms are

    - foreground: the sum of :math:`M \, mean_c(A^C(T) (S - T)^2)`, divided by P;
    - attention: the sum of :math:`|A^C(S) - A^C(T)|` at these positions, divided by P.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        mask: Weights (N, H, W).
        tau: Temperature of the attention, above 0.

    Returns:
        The scalars ``foreground`` and ``attention``, float32 or wider.

    Raises:
        ValueError: If the maps differ in shape, or the mask in size.

    Example:
        >>> maps, mask = torch.ones(2, 8, 4, 4), torch.ones(2, 4, 4)
        >>> pgd_reg_terms(maps, maps + 1, mask)
        {'foreground': tensor(1.), 'attention': tensor(0.)}
    """
    _check_sizes(student, teacher, mask)
    squares, channel = _compare_channels(student, teacher, tau)
    positions = (mask != 0).sum().clamp(min=1)
    return dict(
        foreground=(squares * mask).sum() / student.shape[1] / positions,
        attention=channel.where(mask != 0, 0).sum() / positions,
    )


def _check_sizes(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    check_maps(student, teacher)
    if (len(student), *student.shape[2:]) != mask.shape:
        raise ValueError(
            f'features {tuple(student.shape)} and masks {tuple(mask.shape)} differ in '
            "size; record the same levels for the towers and the teacher's predictions"
        )


def _normalise(mask: Tensor, cross_image: bool) -> Tensor:
    """Divide the mask of each image by the number of its nonzero cells."""
    mask = mask / (mask != 0).sum((1, 2), keepdim=True).clamp(min=1)
    return mask.sum(0) if cross_image else mask


def _compare_channels(
    student: Tensor, teacher: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Return the weighted squares and the error of the attention, channels summed."""
    channels = student.shape[1]
    found, goal = (maps.abs().div_(tau).softmax(1) for maps in (student, teacher))
    squares = (goal * (student - teacher).square()).sum(1)
    return channels * squares, channels * (found - goal).abs().sum(1)


def _spatial_attention(maps: Tensor, tau: float) -> Tensor:
    """Return the attention (N, H, W) of maps (N, C, H, W)."""
    rows = maps.abs().mean(1).flatten(1) / tau
    return rows.shape[1] * rows.softmax(1).unflatten(1, maps.shape[2:])


def _weighted_sums(
    levels: list[dict[str, Tensor]], weights: dict[str, float], loss_weight: float
) -> dict[str, Tensor]:
    return {
        name: loss_weight
        * weight
        * torch.stack([terms[name] for terms in levels]).sum()
        for name, weight in weights.items()
    }


@MODELS.register_module()
class PGDClsLoss(nn.Module):
    """Compute the PGD loss of the classification towers. See `pgd_cls_terms`.

    Args:
        iou_exponent: The exponent of the IoU in `prediction_quality`.
        topk: Number of best cells of a box: 9 for ATSS and GFL, 30 for FCOS.
        tau: Temperature of both attentions.
        foreground_weight: Factor on the foreground term: 0.08 for ATSS, 0.04 for FCOS
            and GFL.
        background_weight: Factor on the background term: half of `foreground_weight`.
        attention_weight: Factor on the attention term.
        level_weights: For each level a factor on foreground and background.
        legacy_cross_image: See `pgd_cls_terms`.
        loss_weight: Factor on all terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> PGDClsLoss(topk=30, foreground_weight=0.04, background_weight=0.02).topk
        30
    """

    per_level = False

    reads_classes = True

    examples = (
        Example(
            wires=dict(teacher_cls='dense class logits', teacher_reg='dense boxes'),
            arguments=lambda s: dict(level_weights=[1.0] * s.num_levels),
        ),
    )

    def __init__(
        self,
        iou_exponent: float = 0.8,
        topk: int = 9,
        tau: float = 0.8,
        foreground_weight: float = 0.08,
        background_weight: float = 0.04,
        attention_weight: float = 8e-4,
        level_weights: Sequence[float] = (1.0, 1.25, 1.5, 1.75, 2.0),
        legacy_cross_image: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('PGDClsLoss', topk=topk)
        factors = {f'level_weights[{i}]': x for i, x in enumerate(level_weights)}
        check_at_least('PGDClsLoss', 0, **factors)
        check_share('PGDClsLoss', iou_exponent=iou_exponent)
        check_above('PGDClsLoss', 0, tau=tau)
        check_at_least(
            'PGDClsLoss',
            0,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            attention_weight=attention_weight,
            loss_weight=loss_weight,
        )
        self.iou_exponent = iou_exponent
        self.topk = topk
        self.tau = tau
        self.weights = dict(
            foreground=foreground_weight,
            background=background_weight,
            attention=attention_weight,
        )
        self.level_weights = level_weights
        self.legacy_cross_image = legacy_cross_image
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        teacher_cls: list[Tensor],
        teacher_reg: list[Tensor],
        data_samples: Sequence[Any],
        targets: DenseTargets,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of maps (N, C, H, W), levels summed.

        Raises:
            ValueError: If the length of `level_weights` is not the number of levels.
        """
        if len(self.level_weights) != len(student):
            raise ValueError(
                f'PGDClsLoss has {len(self.level_weights)} level_weights and wires of '
                f'{len(student)} levels; give it one factor per level'
            )
        masks = teacher_masks(
            teacher_cls,
            teacher_reg,
            data_samples,
            targets,
            self.iou_exponent,
            self.topk,
        )
        levels = [
            pgd_cls_terms(*maps, self.tau, self.legacy_cross_image)
            for maps in zip(student, teacher, masks, strict=True)
        ]
        for terms, factor in zip(levels, self.level_weights, strict=True):
            terms |= {key: factor * terms[key] for key in ('foreground', 'background')}
        return _weighted_sums(levels, self.weights, self.loss_weight)


@MODELS.register_module()
class PGDRegLoss(nn.Module):
    """Compute the PGD loss of the regression towers. See `pgd_reg_terms`.

    Unverified: each level is divided by its own foreground, and all levels have the
    same weight.

    Args:
        iou_exponent: The exponent of the IoU in `prediction_quality`.
        topk: Number of best cells of a box: 9 for ATSS and GFL, 30 for FCOS.
        tau: Temperature of the attention.
        foreground_weight: Factor on the foreground term: 1.6 times that of
            `PGDClsLoss`.
        attention_weight: Factor on the attention term.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> PGDRegLoss(topk=30, foreground_weight=0.064).iou_exponent
        0.6
    """

    per_level = False

    reads_classes = True

    examples = (
        Example(
            wires=dict(teacher_cls='dense class logits', teacher_reg='dense boxes')
        ),
    )

    def __init__(
        self,
        iou_exponent: float = 0.6,
        topk: int = 9,
        tau: float = 0.8,
        foreground_weight: float = 0.128,
        attention_weight: float = 8e-4,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('PGDRegLoss', topk=topk)
        check_share('PGDRegLoss', iou_exponent=iou_exponent)
        check_above('PGDRegLoss', 0, tau=tau)
        check_at_least(
            'PGDRegLoss',
            0,
            foreground_weight=foreground_weight,
            attention_weight=attention_weight,
            loss_weight=loss_weight,
        )
        self.iou_exponent = iou_exponent
        self.topk = topk
        self.tau = tau
        self.weights = dict(foreground=foreground_weight, attention=attention_weight)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        teacher_cls: list[Tensor],
        teacher_reg: list[Tensor],
        data_samples: Sequence[Any],
        targets: DenseTargets,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of maps (N, C, H, W), levels summed."""
        masks = teacher_masks(
            teacher_cls,
            teacher_reg,
            data_samples,
            targets,
            self.iou_exponent,
            self.topk,
        )
        levels = [
            pgd_reg_terms(student_map, teacher_map, mask, self.tau)
            for student_map, teacher_map, (mask, _) in zip(
                student, teacher, masks, strict=True
            )
        ]
        return _weighted_sums(levels, self.weights, self.loss_weight)
