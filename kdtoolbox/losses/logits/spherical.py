"""KD on logits projected onto a sphere (spherical KD, arXiv:2010.07485)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_above, check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def spherical_kd_loss(
    student: Tensor,
    teacher: Tensor,
    radius: float = 2.0,
    tau: float = 4.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    """Compute the mean `kd_divergence` of normalised logits over all valid rows.

    A layer norm without parameters normalises the logits of each row (an RoI or a
    pixel) over the classes to mean 0 and variance 1, with divisor K. Then they are
    multiplied by `radius`.

    Deviation: the task loss of the student reads its original logits; the authors' code
    uses the normalised logits there too. Ignored pixels do not count.

    Args:
        student: Logits (R, K) or (N, K, H, W). K is at least 3, because only the order
            of two classes is left after the normalisation.
        teacher: The same shape; receives no gradient.
        radius: Standard deviation of a row's logits after the projection.
        tau: Temperature of both softmaxes, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 5.0]])
        >>> spherical_kd_loss(student, 3 * student - 1) < 1e-6
        tensor(True)
    """
    check_logits(student, teacher, (2, 4), least=3)
    logits = read_logits(student, teacher, data_samples)
    student, teacher = (radius * _project(x) for x in (logits.student, logits.teacher))
    return logits.mean(kd_divergence(student, teacher, tau))


def _project(logits: Tensor) -> Tensor:
    classes = logits.movedim(1, -1)
    return functional.layer_norm(classes, classes.shape[-1:], eps=1e-7).movedim(-1, 1)


@MODELS.register_module()
class SphericalKDLoss(nn.Module):
    """Spherical KD on the class logits of RoIs or pixels. See `spherical_kd_loss`.

    Sigmoid heads are not supported: each class would become a row of two logits.

    Args:
        radius: Standard deviation of a row's logits after the projection. The authors
            use 2 to 3.
        tau: Temperature of both softmaxes.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `radius` or `tau` is not a finite number above 0.

    Example:
        >>> loss = SphericalKDLoss(radius=3.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(
        self, radius: float = 2.0, tau: float = 4.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_above('SphericalKDLoss', 0, radius=radius)
        check_at_least('SphericalKDLoss', 0, loss_weight=loss_weight)
        self.radius = radius
        self.tau = check_tau('SphericalKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        loss = spherical_kd_loss(student, teacher, self.radius, self.tau, data_samples)
        return self.loss_weight * loss
