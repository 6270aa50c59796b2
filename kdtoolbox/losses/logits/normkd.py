"""KD with a temperature per row, from its logit spread (NormKD, arXiv:2308.00520)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.logits.lskd import logit_deviations
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def normkd_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 2.0,
    data_samples: Sequence[Any] = (),
    eps: float = 1e-7,
) -> Tensor:
    r"""Compute KD with temperatures in proportion to the spread of the logits.

    .. math:: \frac{1}{R} \sum_r (\tau \sigma^T_r)^2 \,
        KL(softmax(T_r / \tau \sigma^T_r) \,\|\, softmax(S_r / \tau \sigma^S_r))

    sigma is the standard deviation of the K logits of a row, with divisor K - 1. The
    gradient flows through that of the student. A row r is an RoI or a pixel that is not
    ignored.

    Deviation: standard deviations are clamped to at least `eps`; the authors' code
    divides by 0.

    Args:
        student: Logits (R, K) or (N, K, H, W). K is at least 3, because only the order
            of two classes is left after the normalisation.
        teacher: The same shape; receives no gradient.
        tau: Temperature of logits with standard deviation 1, above 0.
        data_samples: The batch's samples; see `read_logits`.
        eps: The least standard deviation.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 5.0]])
        >>> normkd_loss(student, 3 * student - 1) < 1e-6
        tensor(True)
    """
    check_logits(student, teacher, (2, 4), least=3)
    logits = read_logits(student, teacher, data_samples)
    pair = logits.student, logits.teacher
    student_tau, teacher_tau = (tau * logit_deviations(x).clamp(min=eps) for x in pair)
    divergence = kd_divergence(pair[0] / student_tau, pair[1] / teacher_tau)
    return logits.mean(teacher_tau[:, 0] ** 2 * divergence)


@MODELS.register_module()
class NormKDLoss(nn.Module):
    """NormKD on the class logits of RoIs or pixels. See `normkd_loss`.

    Sigmoid heads are not supported: each class would become a row of two logits.

    Args:
        tau: Temperature of logits with standard deviation 1. The authors use 2.
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
