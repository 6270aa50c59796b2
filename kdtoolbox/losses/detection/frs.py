"""Feature-richness score (FRS, arXiv:2111.00674)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps, check_predictions
from kdtoolbox.registry import MODELS


def richness_shares(teacher_cls: Tensor) -> Tensor:
    r"""Return how rich each position is, as a share of all positions of a level.

    .. math:: R / \sum_{n,h,w} R, \quad R = \max_k \sigma(z^T_k)

    Args:
        teacher_cls: The teacher's logits (N, A * K, H, W).

    Returns:
        Shares (N, 1, H, W) with the sum 1, float32 or wider, without gradient.

    Example:
        >>> logits = torch.tensor([[-100.0, -1.0986], [-9.0, 1.0986]])
        >>> richness_shares(logits.reshape(2, 2, 1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    dtype = torch.promote_types(teacher_cls.dtype, torch.float32)
    # The sigmoid is monotonous, so that it need not see every class.
    largest = teacher_cls.detach().amax(1, keepdim=True).to(dtype)
    # In the log nothing underflows, however sure the teacher is of an empty image.
    scores = functional.logsigmoid(largest)
    return scores.flatten().softmax(0).reshape(scores.shape)


def weighted_feature_error(
    student: Tensor, teacher: Tensor, teacher_cls: Tensor
) -> Tensor:
    r"""Average the squared errors, summed over channels, by the teacher's richness.

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
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        error = (student - teacher).square().sum(1, keepdim=True)
        return (richness_shares(teacher_cls).to(error.dtype) * error).sum()


def weighted_logit_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Average the binary cross entropy, summed over classes, by the richness.

    .. math:: \frac{\sum_{n,h,w} R \sum_k BCE(z^S_k, \sigma(z^T_k))}{\sum_{n,h,w} R}

    The value at equality is the teacher's weighted entropy, with no gradient.

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
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
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
    """Features of one level; see `weighted_feature_error`.

    The authors warm it up over 500 iterations: see ``LossWeightHook``.

    Args:
        loss_weight: Factor on the loss. The authors use 0.002 for Faster R-CNN, 0.005
            for RetinaNet, 0.01 for FCOS and 0.1 for GFL.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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
        """Compare maps (N, C, H, W), with the teacher's logits (N, A * K, H, W)."""
        return self.loss_weight * weighted_feature_error(student, teacher, teacher_cls)


@MODELS.register_module()
class FRSLogitLoss(nn.Module):
    """Classification of one level; see `weighted_logit_error`.

    The classes are summed, so that the weight depends on their number. The authors
    warm it up like `FRSFeatureLoss`.

    Args:
        loss_weight: Factor on the loss. The authors use 0.1 for the RPN of Faster
            R-CNN, 0.02 for RetinaNet and 0.05 for FCOS and GFL.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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
        """Compare logits (N, A * K, H, W)."""
        return self.loss_weight * weighted_logit_error(student, teacher)
