"""Decoupled knowledge distillation (DKD, arXiv:2203.08679)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import LABELLED_CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits, require_labels
from kdtoolbox.registry import MODELS


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.25,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    r"""Weigh what KD says about the true class and about the others independently.

    .. math:: \frac{\tau^2}{R} \sum_r \alpha \, KL(b^T_r \,\|\, b^S_r) +
        \beta \, KL(q^T_r \,\|\, q^S_r)

    With p = softmax(logits / tau) and the row's label y, b is (p_y, 1 - p_y) and q the
    softmax over the classes other than y. A row is an RoI or a pixel that is not
    ignored, and R is their number. The background of RoIs is a class like any other.

    Deviation: class y is taken out of the logits, and b stays a logarithm, where the
    authors' code subtracts 1000 from its logit and takes the logarithm of b. The values
    agree until p_y or 1 - p_y underflows; then the authors' code gives infinity or NaN.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 2.
        teacher: The same shape; receives no gradient.
        labels: The true class of each row (R,), long, in 0..K - 1. Maps read those of
            their pixels from `data_samples`.
        alpha: Factor on the divergence of b.
        beta: Factor on the divergence of q.
        tau: Temperature of all softmaxes, above 0.
        data_samples: As `read_logits` takes them.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 2 classes, their
            shapes differ, or there is not one label per row.

    Example:
        >>> student, labels = torch.zeros(1, 3), torch.tensor([0])
        >>> teacher = torch.tensor([[0.0, 0.0, 4.0]])
        >>> dkd_loss(student, teacher, labels, alpha=0.0, beta=1.0)
        tensor(0.6031)
    """
    with torch.autocast(student.device.type, enabled=False):
        logits = read_logits(student, teacher, data_samples, labels)
        true = require_labels('DKDLoss', logits)
        mine, theirs = (
            _decouple(x / tau, true) for x in (logits.student, logits.teacher)
        )
        target, others = (
            functional.kl_div(*pair, reduction='none', log_target=True).sum(1)
            for pair in zip(mine, theirs, strict=True)
        )
        return tau**2 * logits.mean(alpha * target + beta * others)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of b, of 2 classes, and of q, of K - 1."""
    label = labels[:, None]
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    classes = classes.reshape(1, -1, *[1] * (logits.dim() - 2))
    # Those from the label on move up by one.
    others = logits.gather(1, classes + (classes >= label))
    rest = others.logsumexp(1, keepdim=True)
    target = torch.cat([logits.gather(1, label), rest], dim=1)
    return target.log_softmax(1), others - rest


@MODELS.register_module()
class DKDLoss(nn.Module):
    """DKD on the class logits of RoIs or pixels. See `dkd_loss`.

    Args:
        alpha: Factor on the divergence of the true class.
        beta: Factor on the divergence of the others. The authors use 0.25 on the RoIs
            of Faster R-CNN; their values for classification are 0.5 to 8.
        tau: Temperature.
        loss_weight: Factor on both.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = DKDLoss(alpha=1.0, beta=8.0, tau=4.0)
        >>> loss(torch.ones(6, 5), torch.ones(6, 5), torch.arange(6) % 5)
        tensor(0.)
    """

    reads_classes = True

    examples = LABELLED_CLASS_LOGITS

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.25,
        tau: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('DKDLoss', 0, alpha=alpha, beta=beta, loss_weight=loss_weight)
        self.alpha = alpha
        self.beta = beta
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
        weights = self.alpha, self.beta, self.tau
        loss = dkd_loss(student, teacher, labels, *weights, data_samples)
        return self.loss_weight * loss
