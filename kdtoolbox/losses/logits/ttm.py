"""KD with a temperature on the teacher only (TTM and WTTM, arXiv:2402.11148)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def ttm_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 10.0,
    weighted: bool = False,
    data_samples: Sequence[Any] = (),
    use_sigmoid: bool = False,
) -> Tensor:
    r"""Compute KD of plain student posteriors with softened teacher posteriors.

    .. math:: \frac{1}{R} \sum_r w_r \, KL(softmax(T_r / \tau) \,\|\, softmax(S_r))

    The student has no temperature, so that there is no factor tau^2. Softening raises
    P = softmax(T) to the power 1 / tau and normalises it. w is the sum before this
    normalisation, which is larger for a less certain teacher; w is 1 if not `weighted`.
    Equal logits do not give 0, because the student learns the softened posteriors.

    Deviation: ignored pixels do not count; the authors' code handles rows only.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of the teacher, 1 / gamma in the paper, above 0.
        weighted: Whether rows are weighted (WTTM) or count equally (TTM).
        data_samples: The batch's samples; see `read_logits`.
        use_sigmoid: Whether each class has its own sigmoid; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps, their shapes differ, or
            there are too few classes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 4.0]])
        >>> ttm_loss(student, teacher, tau=2.0)
        tensor(0.)
        >>> ttm_loss(student, teacher, tau=10.0, weighted=True)
        tensor(0.4268)
    """
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
        tau: Temperature of the teacher. The authors use 10 on CIFAR-100.
        weighted: Whether rows are weighted (WTTM) or count equally (TTM).
        use_sigmoid: Whether each class has its own sigmoid.
        loss_weight: Factor on the loss. The authors use about 45 on CIFAR-100.

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
