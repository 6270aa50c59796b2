"""Relations among classes and among rows (DIST, arXiv:2205.10536)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def dist_terms(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
    use_sigmoid: bool = False,
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    r"""Compute the Pearson distances between posteriors, by rows and by classes.

    .. math:: inter = \frac{\tau^2}{R} \sum_r 1 - \rho(P^S_{r,:}, P^T_{r,:}), \quad
        intra = \frac{\tau^2}{K} \sum_k 1 - \rho(P^S_{:,k}, P^T_{:,k})

    with P = softmax(logits / tau), or the sigmoid. A row r is an RoI or a pixel that is
    not ignored. inter compares the K classes of one row; intra compares all rows of the
    batch in one class, as in the authors' segmentation code. The correlation does not
    depend on scale and shift. `eps` is added to the product of norms: equal maps give
    almost 0, constant values give 1.

    Deviation: ignored pixels do not count; the authors' code counts them.

    Args:
        student: Logits (R, K) or (N, K, H, W). K is at least 3, because two classes
            always correlate by 1 or -1.
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes, above 0.
        data_samples: The batch's samples; see `read_logits`.
        use_sigmoid: Whether each class has its own sigmoid.
        eps: Added to the divisor.

    Returns:
        Scalars ``inter`` and ``intra``, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
        >>> {k: round(float(v), 4) for k, v in dist_terms(student, -student).items()}
        {'inter': 1.8671, 'intra': 1.6667}
    """
    check_logits(student, teacher, (2, 4), least=3)
    logits = read_logits(student, teacher, data_samples)
    student_p, teacher_p = (
        (x / tau).sigmoid() if use_sigmoid else (x / tau).softmax(1)
        for x in (logits.student, logits.teacher)
    )
    valid = logits.valid[:, None].expand_as(student_p)
    rows = [axis for axis in range(student.dim()) if axis != 1]
    inter = logits.mean(1 - _correlation(student_p, teacher_p, valid, [1], eps))
    intra = (1 - _correlation(student_p, teacher_p, valid, rows, eps)).mean()
    return dict(inter=tau**2 * inter, intra=tau**2 * intra * valid.any())


def _correlation(
    first: Tensor, second: Tensor, valid: Tensor, axes: list[int], eps: float
) -> Tensor:
    """Return the correlation of the valid values over `axes`; 0 without any."""
    number = valid.sum(axes, keepdim=True).clamp(min=1)
    first, second = (
        (x - x.where(valid, 0).sum(axes, keepdim=True) / number).where(valid, 0)
        for x in (first, second)
    )
    norms = [torch.linalg.vector_norm(x, dim=axes) for x in (first, second)]
    return (first * second).sum(axes) / (norms[0] * norms[1] + eps)


@MODELS.register_module()
class DISTLoss(nn.Module):
    """DIST on the class logits of RoIs or pixels. See `dist_terms`.

    Args:
        inter_weight: Factor on the relations among the classes of a row. The paper's
            beta.
        intra_weight: Factor on the relations among the rows of a class. The paper's
            gamma.
        tau: Temperature. The authors use 1 for segmentation.
        use_sigmoid: Whether each class has its own sigmoid, as in the dense
            heads of FCOS, ATSS and GFL, which have one prediction per cell.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = DISTLoss(inter_weight=1.0, intra_weight=1.0)
        >>> maps = torch.arange(60.0).reshape(1, 5, 3, 4).sin()
        >>> {k: round(float(v), 4) for k, v in loss(maps, 2 * maps).items()}
        {'inter': 0.0108, 'intra': 0.0124}
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(
        self,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        tau: float = 1.0,
        use_sigmoid: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'DISTLoss',
            0,
            inter_weight=inter_weight,
            intra_weight=intra_weight,
            loss_weight=loss_weight,
        )
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight
        self.tau = check_tau('DISTLoss', tau)
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (R, K) or (N, K, H, W)."""
        terms = dist_terms(student, teacher, self.tau, data_samples, self.use_sigmoid)
        return dict(
            inter=self.loss_weight * self.inter_weight * terms['inter'],
            intra=self.loss_weight * self.intra_weight * terms['intra'],
        )
