"""KD at the temperature of each row's own spread (NormKD, arXiv:2308.00520)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.logits.lskd import deviations
from kdtoolbox.registry import MODELS


def normkd_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 2.0,
    data_samples: Sequence[Any] = (),
    eps: float = 1e-7,
) -> Tensor:
    r"""KL divergence of posteriors softened in proportion to the logits' spread.

    .. math:: \frac{1}{R} \sum_r (\tau \sigma^T_r)^2 \,
        KL(softmax(T_r / \tau \sigma^T_r) \,\|\, softmax(S_r / \tau \sigma^S_r))

    sigma is the standard deviation of a row's K logits, of divisor K - 1; the gradient
    flows through the student's. A row r is an RoI or a pixel that is not ignored.

    Deviation: a deviation below `eps` counts as `eps`, where the authors' code divides
    by 0.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 3: of two logits divided by
            their deviation only the sign of their difference is left.
        teacher: The same shape; receives no gradient.
        tau: Temperature of logits of deviation 1, above 0.
        data_samples: As `read_logits` takes them.
        eps: The least deviation.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 5.0]])
        >>> normkd_loss(student, 3 * student - 1) < 1e-6
        tensor(True)
    """
    check_logits(student, teacher, (2, 4), least=3)
    with torch.autocast(student.device.type, enabled=False):
        logits = read_logits(student, teacher, data_samples)
        pair = logits.student, logits.teacher
        mine, theirs = (tau * deviations(x).clamp(min=eps) for x in pair)
        divergence = kd_divergence(pair[0] / mine, pair[1] / theirs)
        return logits.mean(theirs[:, 0] ** 2 * divergence)


@MODELS.register_module()
class NormKDLoss(nn.Module):
    """NormKD on the class logits of RoIs or pixels. See `normkd_loss`.

    There is no form for sigmoid heads: each of their classes would be a row of two.

    Args:
        tau: Temperature of logits of deviation 1. The authors take 2.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = NormKDLoss(tau=2.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('NormKDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('NormKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        loss = normkd_loss(student, teacher, self.tau, data_samples)
        return self.loss_weight * loss
