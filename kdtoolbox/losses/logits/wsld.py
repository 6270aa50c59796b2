"""Weighted soft labels (WSLD, arXiv:2102.00650)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import LABELLED_CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits, require_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def wsld_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    tau: float = 2.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    r"""Compute KD with less weight on rows where the student beats the teacher.

    .. math:: \frac{\tau^2}{R} \sum_r \omega_r \, H(softmax(T_r / \tau),
        softmax(S_r / \tau)) \qquad
        \omega_r = 1 - \exp(-\frac{H(y, softmax(S_r))}{H(y, softmax(T_r)) + 10^{-7}})

    H is the cross entropy and y the label of the row. The weights receive no gradient.
    A row is an RoI or a pixel that is not ignored; R is the number of rows. Equal
    logits give a zero gradient, but a value above 0.

    Args:
        student: Logits (R, K) or (N, K, H, W), K at least 2.
        teacher: The same shape; receives no gradient.
        labels: The true class of each row (R,), long. Maps take the labels of their
            pixels from `data_samples`.
        tau: Temperature of the soft labels, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid rows.

    Raises:
        ValueError: If the logits are neither rows nor maps, their shapes differ, there
            are too few classes, or the labels are missing or do not fit.

    Example:
        >>> rows = torch.zeros(1, 2)
        >>> wsld_loss(rows, rows, torch.tensor([0]), tau=1.0)
        tensor(0.4382)
    """
    logits = read_logits(student, teacher, data_samples, labels)
    labels = require_labels('WSLDLoss', logits)
    student_error, teacher_error = (
        functional.cross_entropy(x, labels, reduction='none')
        for x in (logits.student.detach(), logits.teacher)
    )
    weights = -torch.expm1(-student_error / (teacher_error + 1e-7))
    soft = functional.cross_entropy(
        logits.student / tau, (logits.teacher / tau).softmax(1), reduction='none'
    )
    return tau**2 * logits.mean(weights * soft)


@MODELS.register_module()
class WSLDLoss(nn.Module):
    """WSLD on the class logits of RoIs or pixels. See `wsld_loss`.

    Args:
        tau: Temperature of the soft labels. The authors use 2 on ImageNet.
        loss_weight: Factor on the loss. The authors use 2.5 on ImageNet.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> loss = WSLDLoss(loss_weight=2.5)
        >>> loss(torch.ones(6, 5), torch.ones(6, 5), torch.arange(6) % 5)
        tensor(10.1736)
    """

    reads_classes = True

    examples = LABELLED_CLASS_LOGITS

    def __init__(self, tau: float = 2.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('WSLDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('WSLDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        data_samples: Sequence[Any] = (),
    ) -> Tensor:
        """Return the weighted loss of logits (R, K) or (N, K, H, W) as a scalar."""
        loss = wsld_loss(student, teacher, labels, self.tau, data_samples)
        return self.loss_weight * loss
