"""Knowledge distillation of softened class posteriors (KD, arXiv:1503.02531)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Compute the KL divergence of softened class posteriors, row by row.

    .. math:: \tau^2 \, KL(softmax_k(T / \tau) \,\|\, softmax_k(S / \tau))

    Summed over the K classes.

    Args:
        student: Logits (R, K) or (N, K, H, W), float32 or wider.
        teacher: The same shape and precision.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        The divergences (R,) or (N, H, W).

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 4.0]])
        >>> kd_divergence(student, teacher)
        tensor([0.6031])
    """
    log_student, log_teacher = ((x / tau).log_softmax(1) for x in (student, teacher))
    terms = functional.kl_div(
        log_student, log_teacher, reduction='none', log_target=True
    )
    return tau**2 * terms.sum(1)


@full_precision
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
    use_sigmoid: bool = False,
) -> Tensor:
    """Compute the KD loss: the mean `kd_divergence` over all valid rows.

    A row is an RoI or a pixel: the divisor is N * H * W for maps, as in CIRKD's
    segmentation code.

    Deviation: ignored pixels do not count; all known codes count them.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes, above 0.
        data_samples: The batch's samples; see `read_logits`.
        use_sigmoid: Whether each class has its own sigmoid; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps, their shapes differ, or
            there are too few classes.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 4.0]])
        >>> kd_loss(student, teacher)
        tensor(0.6031)
    """
    logits = read_logits(student, teacher, data_samples, use_sigmoid=use_sigmoid)
    return logits.mean(kd_divergence(logits.student, logits.teacher, tau))


@MODELS.register_module()
class KDLoss(nn.Module):
    """KD on the class logits of RoIs or pixels. See `kd_loss`.

    Args:
        tau: Temperature. 1 is common for RoIs and pixels.
        use_sigmoid: Whether each class has its own sigmoid, as in the dense
            heads of RetinaNet, FCOS, ATSS and GFL.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = KDLoss(tau=4.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(
        self, tau: float = 1.0, use_sigmoid: bool = False, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_at_least('KDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('KDLoss', tau)
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        loss = kd_loss(student, teacher, self.tau, data_samples, self.use_sigmoid)
        return self.loss_weight * loss
