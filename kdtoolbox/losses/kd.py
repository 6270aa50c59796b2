"""Knowledge distillation of softened class posteriors (KD, arXiv:1503.02531)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.registry import MODELS


def kd_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""KL divergence of softened class posteriors, averaged over the rows.

    .. math:: \frac{\tau^2}{R} \sum_r
        KL(softmax_k(T_r / \tau) \,\|\, softmax_k(S_r / \tau))

    Summed over the K classes. A row is an RoI or a pixel, so that R is N * H * W for
    maps, as in CIRKD's segmentation code. Every row counts, those of pixels without
    label too. The logits have to be those of a softmax: the heads of RetinaNet, FCOS,
    ATSS and GFL end in sigmoids.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider; 0 without rows.

    Raises:
        ValueError: If the logits have another number of axes, their shapes differ, or
            there are fewer than two classes.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, 4.0]])
        >>> kd_loss(student, teacher)
        tensor(0.6031)
    """
    check_logits(student, teacher, (2, 4))
    rows = max(student[:, :1].numel(), 1)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        total = functional.kl_div(
            (student / tau).log_softmax(1),
            (teacher / tau).log_softmax(1),
            reduction='sum',
            log_target=True,
        )
        return total * (tau**2 / rows)


def check_logits(student: Tensor, teacher: Tensor, axes: tuple[int, ...]) -> None:
    """Refuse anything but two tensors of one shape with two classes or more on axis 1.

    Args:
        student: Logits (R, K) or (N, K, H, W).
        teacher: The same shape.
        axes: The numbers of axes that the caller can read.

    Raises:
        ValueError: If it is another number of axes, the shapes differ, or there are
            fewer than two classes, whose softmax is always 1.

    Example:
        >>> check_logits(torch.ones(6, 5), torch.ones(6, 5), axes=(2,))
    """
    shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
    if student.dim() not in axes or teacher.dim() not in axes:
        known = {2: 'rows (R, K)', 4: 'maps (N, K, H, W)'}
        raise ValueError(
            f'expected logits as {" or ".join(known[n] for n in axes)}, got {shapes}; '
            'name wires of class logits as `student` and `teacher` of this loss'
        )
    if student.shape != teacher.shape:
        raise ValueError(
            f'{shapes} differ in shape; both sides need the same classes (axis 1) of '
            'the same rows. RoIs of the two sides are the same under '
            "type='kdtoolbox.RoIDistiller'; for maps put a ResizeConnector under "
            '`connectors`'
        )
    if student.shape[1] < 2:
        raise ValueError(
            f'expected logits of at least 2 classes, got {shapes}; name wires of a '
            'softmax over all classes, the background among them'
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Refuse anything but one class index per row.

    Raises:
        ValueError: If it is another shape or type.

    Example:
        >>> check_labels(torch.tensor([0, 3, 1]), rows=3)
    """
    if labels.shape != (rows,) or labels.dtype != torch.long:
        raise ValueError(
            f'expected `labels` of shape ({rows},) and type long, got '
            f'{tuple(labels.shape)} of {labels.dtype}; name the wire of the labels of '
            "these rows, such as labels='roi.labels'"
        )


def check_tau(owner: str, tau: float) -> float:
    """Return a temperature that is a finite number above 0.

    Raises:
        ValueError: If it is another.

    Example:
        >>> check_tau('KDLoss', 4.0)
        4.0
    """
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(
            f'{owner}: tau must be a finite number above 0, got {tau!r}; '
            'write for instance tau=1.0 in the entry of this loss under `losses`'
        )
    return tau


@MODELS.register_module()
class KDLoss(nn.Module):
    """KD on the class logits of RoIs or pixels. See `kd_loss`.

    Args:
        tau: Temperature. 1 is usual on RoIs and pixels.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0.

    Example:
        >>> loss = KDLoss(tau=4.0)
        >>> loss(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    def __init__(self, tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.tau = check_tau('KDLoss', tau)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted divergence of logits (R, K) or (N, K, H, W)."""
        return self.loss_weight * kd_loss(student, teacher, self.tau)
