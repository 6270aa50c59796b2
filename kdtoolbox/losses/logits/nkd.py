"""Normalized knowledge distillation (NKD, arXiv:2303.13005)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import LABELLED_CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import (
    check_tau,
    read_logits,
    remove_label,
    require_labels,
)
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def nkd_terms(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    tau: float = 1.0,
    data_samples: Sequence[Any] = (),
) -> dict[str, Tensor]:
    r"""Compute cross entropies with the teacher for the true class and the others.

    .. math:: target = -\frac{1}{R} \sum_r p^T_y \log p^S_y \qquad
        non\_target = -\frac{\tau^2}{R} \sum_r \sum_{k \ne y} q^T_k \log q^S_k

    With the row's label y, p is the softmax of the logits and q is the softmax over the
    classes other than y, with temperature tau. A row is an RoI or a pixel that is not
    ignored; R is the number of rows. Equal logits do not give 0, because both terms are
    cross entropies.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 2.
        teacher: The same shape; receives no gradient.
        labels: The true class of each row (R,), long. Maps take the labels of their
            pixels from `data_samples`.
        tau: Temperature of q, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        ``target`` and ``non_target``, scalars, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps, their shapes differ, there
            are too few classes, or the labels are missing or do not fit.

    Example:
        >>> student, labels = torch.zeros(1, 3), torch.tensor([0])
        >>> nkd_terms(student, torch.tensor([[9.0, 0.0, 0.0]]), labels)
        {'target': tensor(1.0983), 'non_target': tensor(0.6931)}
    """
    logits = read_logits(student, teacher, data_samples, labels)
    labels = require_labels('NKDLoss', logits)
    sides = logits.student, logits.teacher
    p, q = (x.log_softmax(1).gather(1, labels[:, None])[:, 0] for x in sides)
    target = -q.exp() * p
    p, q = ((remove_label(x, labels) / tau).log_softmax(1) for x in sides)
    non_target = -(q.exp() * p).sum(1)
    return {
        'target': logits.mean(target),
        'non_target': tau**2 * logits.mean(non_target),
    }


@MODELS.register_module()
class NKDLoss(nn.Module):
    """NKD on the class logits of RoIs or pixels. See `nkd_terms`.

    Args:
        non_target_weight: Factor on the classes other than the true one, the paper's
            gamma. The authors use 1.5 on ImageNet.
        tau: Temperature of the classes other than the true one.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = NKDLoss(loss_weight=2.0)
        >>> terms = loss(torch.ones(6, 5), torch.ones(6, 5), torch.arange(6) % 5)
        >>> terms['non_target']
        tensor(4.1589)
    """

    reads_classes = True

    examples = LABELLED_CLASS_LOGITS

    def __init__(
        self,
        non_target_weight: float = 1.5,
        tau: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'NKDLoss', 0, non_target_weight=non_target_weight, loss_weight=loss_weight
        )
        self.non_target_weight = non_target_weight
        self.tau = check_tau('NKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        data_samples: Sequence[Any] = (),
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (R, K) or (N, K, H, W)."""
        terms = nkd_terms(student, teacher, labels, self.tau, data_samples)
        return {
            'target': self.loss_weight * terms['target'],
            'non_target': self.loss_weight
            * self.non_target_weight
            * terms['non_target'],
        }
