"""Decoupled knowledge distillation (DKD, arXiv:2203.08679)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import LABELLED_CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import (
    check_tau,
    read_logits,
    remove_label,
    require_labels,
)
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    target_weight: float = 1.0,
    non_target_weight: float = 0.25,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    r"""Compute KD with separate weights for the true class and the other classes.

    .. math:: \frac{\tau^2}{R} \sum_r \alpha \, KL(b^T_r \,\|\, b^S_r) +
        \beta \, KL(q^T_r \,\|\, q^S_r)

    With p = softmax(logits / tau) and the row's label y, b is (p_y, 1 - p_y) and q is
    the softmax over the classes other than y. alpha is `target_weight` and beta is
    `non_target_weight`. A row is an RoI or a pixel that is not ignored; R is the number
    of rows. The background of RoIs counts as a class.

    Deviation: class y is removed from the logits and b is computed as a logarithm. The
    authors' code subtracts 1000 from the logit of y and takes the logarithm of b. The
    values agree until p_y or 1 - p_y underflows; then the authors' code gives infinity
    or NaN.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 2.
        teacher: The same shape; receives no gradient.
        labels: The true class of each row (R,), long, in 0..K - 1. Maps take the labels
            of their pixels from `data_samples`.
        target_weight: Factor on the divergence of b.
        non_target_weight: Factor on the divergence of q.
        tau: Temperature of all softmaxes, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 2 classes, their
            shapes differ, or there is not one label per row.

    Example:
        >>> student, labels = torch.zeros(1, 3), torch.tensor([0])
        >>> teacher = torch.tensor([[0.0, 0.0, 4.0]])
        >>> dkd_loss(student, teacher, labels, target_weight=0.0, non_target_weight=1.0)
        tensor(0.6031)
    """
    logits = read_logits(student, teacher, data_samples, labels)
    true = require_labels('DKDLoss', logits)
    student_parts, teacher_parts = (
        _decouple(x / tau, true) for x in (logits.student, logits.teacher)
    )
    target, non_target = (
        functional.kl_div(*pair, reduction='none', log_target=True).sum(1)
        for pair in zip(student_parts, teacher_parts, strict=True)
    )
    return tau**2 * logits.mean(target_weight * target + non_target_weight * non_target)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of b (2 classes) and of q (K - 1 classes)."""
    others = remove_label(logits, labels)
    rest = others.logsumexp(1, keepdim=True)
    target = torch.cat([logits.gather(1, labels[:, None]), rest], dim=1)
    return target.log_softmax(1), others - rest


@MODELS.register_module()
class DKDLoss(nn.Module):
    """DKD on the class logits of RoIs or pixels. See `dkd_loss`.

    Args:
        target_weight: Factor on the divergence of the true class. The paper's alpha.
        non_target_weight: Factor on the divergence of the other classes, the paper's
            beta. The authors use 0.25 on the RoIs of Faster R-CNN and 0.5 to 8 for
            classification.
        tau: Temperature.
        loss_weight: Factor on both divergences.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = DKDLoss(target_weight=1.0, non_target_weight=8.0, tau=4.0)
        >>> loss(torch.ones(6, 5), torch.ones(6, 5), torch.arange(6) % 5)
        tensor(0.)
    """

    reads_classes = True

    examples = LABELLED_CLASS_LOGITS

    def __init__(
        self,
        target_weight: float = 1.0,
        non_target_weight: float = 0.25,
        tau: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'DKDLoss',
            0,
            target_weight=target_weight,
            non_target_weight=non_target_weight,
            loss_weight=loss_weight,
        )
        self.target_weight = target_weight
        self.non_target_weight = non_target_weight
        self.tau = check_tau('DKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        data_samples: Sequence[Any] = (),
    ) -> Tensor:
        """Return the weighted loss of logits (R, K) or (N, K, H, W) as a scalar."""
        weights = self.target_weight, self.non_target_weight
        loss = dkd_loss(student, teacher, labels, *weights, self.tau, data_samples)
        return self.loss_weight * loss
