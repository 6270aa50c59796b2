"""Channel distillation and guided knowledge distillation (arXiv:2006.01683)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import LABELLED_CLASS_LOGITS, Example
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits, require_labels
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def channel_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean squared error of the channels' spatial means.

    .. math:: mean_{n,c}((mean_{h,w}(S) - mean_{h,w}(T))^2)

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C, H', W'); receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N or C differ.

    Example:
        >>> channel_distance(torch.ones(1, 2, 4, 4), torch.full((1, 2, 3, 3), 4.0))
        tensor(9.)
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() != 4 or teacher.dim() != 4:
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shapes}')
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f'{shapes} differ in images or channels; put a ConvConnector under '
            '`connectors` and name it as the input of this loss'
        )
    return functional.mse_loss(student.mean((2, 3)), teacher.mean((2, 3)))


@full_precision
def guided_divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    data_samples: Sequence[Any] = (),
    tau: float = 1.0,
) -> Tensor:
    r"""Average `kd_divergence` over the rows that the teacher classifies correctly.

    .. math:: \frac{\sum_r [argmax(T_r) = y_r] \, \tau^2 KL(T_r \,\|\, S_r)}
        {\sum_r [argmax(T_r) = y_r]}

    Deviation: if the teacher is correct nowhere the loss is 0, where the authors' code
    divides by 0. Ignored pixels are excluded.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape; receives no gradient.
        labels: Classes (R,) of the rows, long. Only for logits (R, K).
        data_samples: Samples of the batch with the labels of maps; see `read_logits`.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If the shapes of logits and labels differ, or labels are missing.

    Example:
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, 4.0], [9.0, 0]])
        >>> guided_divergence(student, teacher, torch.tensor([1, 1]))
        tensor(0.6031)
    """
    logits = read_logits(student, teacher, data_samples, labels)
    labels = require_labels('GuidedKDLoss', logits)
    right = logits.valid & (logits.teacher.argmax(1) == labels)
    values = kd_divergence(logits.student, logits.teacher, tau)
    return values.where(right, 0).sum() / right.sum().clamp(min=1)


@MODELS.register_module()
class ChannelDistillationLoss(nn.Module):
    """Channel distillation on one level; see `channel_distance`.

    Args:
        loss_weight: Factor on the loss. The authors use 6 for classification.

    Raises:
        ValueError: If `loss_weight` is negative or not finite.

    Example:
        >>> loss = ChannelDistillationLoss(loss_weight=6.0)
        >>> loss(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
        tensor(6.)
    """

    examples = (Example('map', 'map of other size'),)

    def __init__(self, loss_weight: float = 6.0) -> None:
        super().__init__()
        check_at_least('ChannelDistillationLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted distance of maps (N, C, H, W), (N, C, H', W')."""
        return self.loss_weight * channel_distance(student, teacher)


@MODELS.register_module()
class GuidedKDLoss(nn.Module):
    """KD where the teacher is correct; see `guided_divergence`.

    Deviation: the authors decay the weight early in training. Here the weight is
    constant; a `kdtoolbox.LossWeightHook` can change it.

    Args:
        tau: Temperature.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not above 0, or `loss_weight` is negative.

    Example:
        >>> loss, logits = GuidedKDLoss(tau=4.0), torch.eye(3)
        >>> loss(logits, logits, labels=torch.arange(3))
        tensor(0.)
    """

    reads_classes = True

    examples = LABELLED_CLASS_LOGITS

    def __init__(self, tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('GuidedKDLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('GuidedKDLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None = None,
        data_samples: Sequence[Any] = (),
    ) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        loss = guided_divergence(student, teacher, labels, data_samples, self.tau)
        return self.loss_weight * loss
