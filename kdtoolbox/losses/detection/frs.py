"""Feature-richness score (FRS, arXiv:2111.00674)."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps, check_predictions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def richness_shares(teacher_cls: Tensor) -> Tensor:
    r"""Compute the feature richness of each position, normalised to sum 1.

    .. math:: R / \sum_{n,h,w} R, \quad R = \max_k \sigma(z^T_k)

    Args:
        teacher_cls: The teacher's logits (N, A * K, H, W).

    Returns:
        Shares (N, 1, H, W) that sum to 1, float32 or wider, without gradient.

    Example:
        >>> logits = torch.tensor([[-100.0, -1.0986], [-9.0, 1.0986]])
        >>> richness_shares(logits.reshape(2, 2, 1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    # The sigmoid is monotonic: the maximum over the classes can be taken first.
    largest = teacher_cls.amax(1, keepdim=True)
    # Probabilities of an image without objects would underflow; logarithms do not.
    scores = functional.logsigmoid(largest)
    return scores.flatten().softmax(0).reshape(scores.shape)


@full_precision
def weighted_feature_error(
    student: Tensor, teacher: Tensor, teacher_cls: Tensor
) -> Tensor:
    r"""Compute the squared error of features, weighted by the teacher's richness.

    .. math:: \frac{\sum_{n,h,w} R \sum_c (S - T)^2}{\sum_{n,h,w} R}

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        teacher_cls: The teacher's logits (N, A * K, H, W), see `richness_shares`.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If the features differ in shape, or the logits in size.

    Example:
        >>> maps, logits = torch.ones(1, 3, 2, 2), torch.zeros(1, 4, 2, 2)
        >>> weighted_feature_error(maps, 0 * maps, logits)
        tensor(3.)
    """
    check_maps(student, teacher)
    _check_logits(student, teacher_cls)
    error = (student - teacher).square().sum(1, keepdim=True)
    return (richness_shares(teacher_cls) * error).sum()


@full_precision
def weighted_logit_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the binary cross-entropy of logits, weighted by the teacher's richness.

    .. math:: \frac{\sum_{n,h,w} R \sum_k BCE(z^S_k, \sigma(z^T_k))}{\sum_{n,h,w} R}

    For equal logits the value is the teacher's weighted entropy and the gradient is 0.

    Args:
        student: Logits (N, A * K, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> weighted_logit_error(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor(0.6931)
    """
    check_predictions(student, teacher)
    entropy = functional.binary_cross_entropy_with_logits(
        student, teacher.sigmoid(), reduction='none'
    )
    return (richness_shares(teacher) * entropy.sum(1, keepdim=True)).sum()


def _check_logits(student: Tensor, teacher_cls: Tensor) -> None:
    sizes = [(len(x), *x.shape[2:]) for x in (student, teacher_cls)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f'features {tuple(student.shape)} and logits {tuple(teacher_cls.shape)} '
            'differ in size; record the same levels for `student` and `teacher_cls`'
        )


@MODELS.register_module()
class FRSFeatureLoss(nn.Module):
    """Compute the FRS loss of the features of one level. See `weighted_feature_error`.

    The authors raise its weight over the first 500 iterations: see ``LossWeightHook``.

    Args:
        loss_weight: Factor on the loss. The authors use 0.002 for Faster R-CNN, 0.005
            for RetinaNet, 0.01 for FCOS and 0.1 for GFL.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> FRSFeatureLoss().loss_weight
        0.005
    """

    examples = (Example(wires=dict(teacher_cls='dense class logits')),)

    def __init__(self, loss_weight: float = 0.005) -> None:
        super().__init__()
        check_at_least('FRSFeatureLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor, teacher_cls: Tensor) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W) and logits (N, A * K, H, W)."""
        return self.loss_weight * weighted_feature_error(student, teacher, teacher_cls)


@MODELS.register_module()
class FRSLogitLoss(nn.Module):
    """Compute the FRS loss of the class logits of one level.

    See `weighted_logit_error`. The loss is a sum over the classes, so that a good
    weight depends on their number. The authors raise the weight as for
    `FRSFeatureLoss`.

    Args:
        loss_weight: Factor on the loss. The authors use 0.1 for the RPN of Faster
            R-CNN, 0.02 for RetinaNet and 0.05 for FCOS and GFL.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> FRSLogitLoss().loss_weight
        0.02
    """

    reads_classes = True

    examples = (Example('dense class logits'),)

    def __init__(self, loss_weight: float = 0.02) -> None:
        super().__init__()
        check_at_least('FRSLogitLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted loss of logits (N, A * K, H, W)."""
        return self.loss_weight * weighted_logit_error(student, teacher)
