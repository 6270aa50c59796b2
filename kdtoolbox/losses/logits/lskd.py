"""KD of standardised logits (LSKD, arXiv:2403.01427)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def logit_deviations(logits: Tensor) -> Tensor:
    """Return the standard deviation of each row over its classes, with divisor K - 1.

    Args:
        logits: (R, K) or (N, K, H, W), K at least 2.

    Returns:
        The deviations (R, 1) or (N, 1, H, W).

    Example:
        >>> logit_deviations(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1.]])
    """
    centred = logits - logits.mean(1, keepdim=True)
    # Tensor.std would warn about an input without rows.
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return norms / math.sqrt(logits.shape[1] - 1)


def _standardize(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Standardise the logits of each row to mean 0 and variance 1 over the classes.

    Args:
        logits: (R, K) or (N, K, H, W), K at least 2.
        eps: Added to the standard deviation, which has the divisor K - 1.

    Returns:
        The same shape. The gradient flows through mean and deviation.

    Example:
        >>> _standardize(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=3)
        tensor([[-1.,  0.,  1.]])
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logit_deviations(logits) + eps)


@full_precision
def lskd_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 2.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    """Compute the mean `kd_divergence` of standardised logits over all valid rows.

    The loss does not depend on scale and shift of a row (an RoI or a pixel), so that
    the student need not match the confidence of its teacher.

    Deviation: the class axis of maps is axis 1; the authors' code was written for rows
    and takes the last axis. Ignored pixels do not count.

    Args:
        student: Logits (R, K) or (N, K, H, W). K is at least 3, because
            standardising two logits leaves only their order.
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes on standardised logits, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 5.0]])
        >>> lskd_loss(student, 3 * student - 1) < 1e-6
        tensor(True)
    """
    check_logits(student, teacher, (2, 4), least=3)
    logits = read_logits(student, teacher, data_samples)
    student, teacher = (_standardize(x) for x in (logits.student, logits.teacher))
    return logits.mean(kd_divergence(student, teacher, tau))


@MODELS.register_module()
class LSKDLoss(nn.Module):
    """LSKD on the class logits of RoIs or pixels. See `lskd_loss`.

    Sigmoid heads are not supported: each class would become a row of two logits.

    Args:
        tau: Temperature of both softmaxes. The authors use 2.
        loss_weight: Factor on the loss. The authors use 9 for classification.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = LSKDLoss(tau=2.0, loss_weight=9.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('LSKDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('LSKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        loss = lskd_loss(student, teacher, self.tau, data_samples)
        return self.loss_weight * loss
