"""Relations among classes and among rows (DIST, arXiv:2205.10536)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.registry import MODELS


def dist_terms(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
    use_sigmoid: bool = False,
    eps: float = 1e-8,
) -> dict[str, Tensor]:
    r"""Compare posteriors by Pearson correlation, which no scale or shift changes.

    .. math:: inter = \frac{\tau^2}{R} \sum_r 1 - \rho(P^S_{r,:}, P^T_{r,:}), \quad
        intra = \frac{\tau^2}{K} \sum_k 1 - \rho(P^S_{:,k}, P^T_{:,k})

    With P = softmax(logits / tau), or sigmoid. A row r is an RoI or a pixel that is not
    ignored: inter compares the K classes of one row, intra all rows of the batch in
    one class, as in the authors' segmentation code. `eps` is added to the product of
    norms, so that equal maps give almost 0; what does not vary at all gives 1.

    Deviation: ignored pixels do not count, where the authors' code counts them.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 3: in two classes any row
            correlates with any other by 1 or -1.
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes, above 0.
        data_samples: As `read_logits` takes them.
        use_sigmoid: Whether each class has a probability of its own.
        eps: Guards the division.

    Returns:
        Scalars ``inter`` and ``intra``, float32 or wider; 0 if no row counts.

    Raises:
        ValueError: If the logits are neither rows nor maps of at least 3 classes, or
            their shapes differ.

    Example:
        >>> student = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
        >>> {k: round(float(v), 4) for k, v in dist_terms(student, -student).items()}
        {'inter': 1.8671, 'intra': 1.6667}
    """
    check_logits(student, teacher, (2, 4), least=3)
    with torch.autocast(student.device.type, enabled=False):
        logits = read_logits(student, teacher, data_samples)
        mine, theirs = (
            (x / tau).sigmoid() if use_sigmoid else (x / tau).softmax(1)
            for x in (logits.student, logits.teacher)
        )
        counts = logits.valid[:, None].expand_as(mine)
        rows = [axis for axis in range(student.dim()) if axis != 1]
        inter = logits.mean(1 - _correlation(mine, theirs, counts, [1], eps))
        intra = (1 - _correlation(mine, theirs, counts, rows, eps)).mean()
        return dict(inter=tau**2 * inter, intra=tau**2 * intra * counts.any())


def _correlation(
    first: Tensor, second: Tensor, counts: Tensor, axes: list[int], eps: float
) -> Tensor:
    """Correlate over some axes what counts; 0 where nothing does."""
    number = counts.sum(axes, keepdim=True).clamp(min=1)
    first, second = (
        (x - x.where(counts, 0).sum(axes, keepdim=True) / number).where(counts, 0)
        for x in (first, second)
    )
    norms = [torch.linalg.vector_norm(x, dim=axes) for x in (first, second)]
    return (first * second).sum(axes) / (norms[0] * norms[1] + eps)


@MODELS.register_module()
class DISTLoss(nn.Module):
    """DIST on the class logits of RoIs or pixels. See `dist_terms`.

    Args:
        beta: Factor on the relations among the classes of a row.
        gamma: Factor on the relations among the rows of a class.
        tau: Temperature. The authors take 1 for segmentation.
        use_sigmoid: Whether each class has a probability of its own, as in the dense
            heads of FCOS, ATSS and GFL, which have one prediction per cell.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = DISTLoss(beta=1.0, gamma=1.0)
        >>> maps = torch.arange(60.0).reshape(1, 5, 3, 4).sin()
        >>> {k: round(float(v), 4) for k, v in loss(maps, 2 * maps).items()}
        {'inter': 0.0108, 'intra': 0.0124}
    """

    reads_classes = True

    examples = CLASS_LOGITS

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        tau: float = 1.0,
        use_sigmoid: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('DISTLoss', 0, beta=beta, gamma=gamma, loss_weight=loss_weight)
        self.beta = beta
        self.gamma = gamma
        self.tau = check_tau('DISTLoss', tau)
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (R, K) or (N, K, H, W)."""
        terms = dist_terms(student, teacher, self.tau, data_samples, self.use_sigmoid)
        return dict(
            inter=self.loss_weight * self.beta * terms['inter'],
            intra=self.loss_weight * self.gamma * terms['intra'],
        )
