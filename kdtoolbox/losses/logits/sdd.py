"""Scale decoupled distillation (SDD, arXiv:2403.13512) for segmentation logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import (
    ClassLogits,
    check_logits,
    check_tau,
    read_logits,
    require_labels,
)
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def sdd_loss(
    student: Tensor,
    teacher: Tensor,
    data_samples: Sequence[Any],
    grids: Sequence[int] = (1, 2, 4),
    tau: float = 4.0,
) -> Tensor:
    r"""Compute KD on the mean logits of windows, with more weight on hard windows.

    Each grid g cuts the map into g x g windows. The logits of a window are the mean
    over its pixels; its label y is the most frequent one. With R windows of all grids
    and images that contain a valid pixel:

    .. math:: \frac{\tau^2}{R} \sum_r \omega_r \,
        KL(softmax(T_r / \tau) \,\|\, softmax(S_r / \tau))

    The weight is 2 where the teacher is right about either the window or the whole map
    but not both, else 1. It is right where its largest logit is y.

    Deviation: the paper classifies images, where every window has the label of its
    image. Pooling segmentation logits with one label per window is our own adaptation.
    Deviation: ignored pixels are left out of the windows.

    Args:
        student: Logits (N, K, H, W).
        teacher: The same shape; receives no gradient.
        data_samples: N samples with ``gt_sem_seg``.
        grids: Windows per side. The first grid is 1, the whole map.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider; 0 without valid pixels.

    Raises:
        ValueError: If the logits are not maps, their shapes differ, there are too few
            classes, or the samples have no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.tensor([[[0, 1]]]))
        >>> student, teacher = torch.zeros(2, 1, 2, 1, 2)
        >>> teacher[0, 1] = 4.0
        >>> sdd_loss(student, teacher, [SimpleNamespace(gt_sem_seg=seg)], (1,), 1.0)
        tensor(0.6031)
    """
    check_logits(student, teacher, (4,))
    logits = read_logits(student, teacher, data_samples)
    labels = require_labels('SDDLoss', logits)
    windows = _pool(logits, grids)
    right = windows.teacher.argmax(1) == _frequent(logits, labels, grids)
    weights = 1 + (right != right[:, :1]).to(student.dtype)
    divergence = kd_divergence(windows.student, windows.teacher, tau)
    return windows.mean(weights * divergence)


def _pool(logits: ClassLogits, grids: Sequence[int]) -> ClassLogits:
    """Return the mean logits (N, K, R) of the windows of all grids."""
    valid = logits.valid[:, None]
    shares = _means(valid.to(logits.student.dtype), grids)
    student, teacher = (
        _means(x.where(valid, 0), grids) / shares.where(shares > 0, 1)
        for x in (logits.student, logits.teacher)
    )
    return ClassLogits(student, teacher, shares[:, 0] > 0, None)


def _frequent(logits: ClassLogits, labels: Tensor, grids: Sequence[int]) -> Tensor:
    """Return the most frequent labels (N, R) of the windows of all grids."""
    classes = torch.arange(logits.student.shape[1], device=labels.device)
    pixels = (labels[:, None] == classes[:, None, None]) & logits.valid[:, None]
    return _means(pixels.float(), grids).argmax(1)


def _means(maps: Tensor, grids: Sequence[int]) -> Tensor:
    pooled = (functional.adaptive_avg_pool2d(maps, grid).flatten(2) for grid in grids)
    return torch.cat(list(pooled), dim=2)


@MODELS.register_module()
class SDDLoss(nn.Module):
    """SDD on the logits of a segmentor. See `sdd_loss`.

    Args:
        grids: Windows per side. The first grid is 1, the whole map. The authors use 1,
            2 and 4 on images of one object.
        tau: Temperature. The authors use 4 on CIFAR-100.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or `grids` are not integers
            above 0 with 1 as the first.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.zeros(1, 64, 64).long())
        >>> maps = torch.ones(1, 19, 8, 8)
        >>> SDDLoss(tau=1.0)(maps, maps, [SimpleNamespace(gt_sem_seg=seg)])
        tensor(0.)
    """

    reads_classes = True

    examples = (Example('class logits map', pixel_labels=True),)

    def __init__(
        self,
        grids: Sequence[int] = (1, 2, 4),
        tau: float = 4.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('SDDLoss', 0, loss_weight=loss_weight)
        if list(grids)[:1] != [1] or not all(
            isinstance(grid, int) and grid > 0 for grid in grids
        ):
            raise ValueError(
                f'SDDLoss: grids must be integers above 0 with 1 as the first, got '
                f'{grids!r}; write for instance grids=(1, 2, 4) in the entry of this '
                'loss under `losses`'
            )
        self.grids = tuple(grids)
        self.tau = check_tau('SDDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted loss of logits (N, K, H, W) as a scalar."""
        loss = sdd_loss(student, teacher, data_samples, self.grids, self.tau)
        return self.loss_weight * loss
