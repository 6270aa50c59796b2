"""KD that softens the teacher alone (TTM and WTTM, arXiv:2402.11148)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.registry import MODELS


def ttm_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 10.0,
    weighted: bool = False,
    data_samples: Sequence[Any] = (),
    use_sigmoid: bool = False,
) -> Tensor:
    r"""KL divergence of the student's posteriors from the teacher's softened ones.

    .. math:: \frac{1}{R} \sum_r w_r \, KL(softmax(T_r / \tau) \,\|\, softmax(S_r))

    The student has no temperature, and there is no factor of its square. With P =
    softmax(T), softening is to take the power 1 / tau of P and to normalise it; w is
    the sum before the normalisation, the larger the less sure the teacher is, or 1 if
    not `weighted`. Equal logits are not 0: the student is to be as soft as the target.

    Deviation: ignored pixels do not count; the authors' code has rows alone.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of the teacher, 1 / gamma in the paper, above 0.
        weighted: Whether rows have a weight (WTTM) or count equally (TTM).
        data_samples: As `read_logits` takes them.
        use_sigmoid: As `read_logits` takes it.

    Returns:
        A scalar, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: If the logits have another number of axes, their shapes differ, or
            there are too few classes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 4.0]])
        >>> ttm_loss(student, teacher, tau=2.0)
        tensor(0.)
        >>> ttm_loss(student, teacher, tau=10.0, weighted=True)
        tensor(0.4268)
    """
    with torch.autocast(student.device.type, enabled=False):
        logits = read_logits(student, teacher, data_samples, use_sigmoid=use_sigmoid)
        divergence = kd_divergence(logits.student, logits.teacher / tau)
        if weighted:
            powers = logits.teacher.log_softmax(1) / tau
            divergence = powers.logsumexp(1).exp() * divergence
        return logits.mean(divergence)


@MODELS.register_module()
class TTMLoss(nn.Module):
    """TTM or WTTM on the class logits of RoIs or pixels. See `ttm_loss`.

    Args:
        tau: Temperature of the teacher. The authors take 10 on CIFAR-100.
        weighted: Whether rows have a weight (WTTM) or count equally (TTM).
        use_sigmoid: Whether each class has a probability of its own.
        loss_weight: Factor on the loss. The authors take about 45 on CIFAR-100.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = TTMLoss(tau=4.0, weighted=True)
        >>> loss(torch.zeros(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(
        self,
        tau: float = 10.0,
        weighted: bool = False,
        use_sigmoid: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('TTMLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('TTMLoss', tau)
        self.weighted = weighted
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        options = self.tau, self.weighted, data_samples, self.use_sigmoid
        return self.loss_weight * ttm_loss(student, teacher, *options)
