"""Prediction-guided feature imitation (PFI, arXiv:2112.04840).

The same paper proposes rank mimicking, `kdtoolbox.losses.detection.rm`.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps, check_predictions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def guided_feature_error(
    student: Tensor,
    teacher: Tensor,
    student_cls: Tensor,
    teacher_cls: Tensor,
    legacy_logits: bool = False,
) -> Tensor:
    r"""Compute the squared error of features, weighted by that of the predictions.

    .. math:: mean_{n,h,w}(mean_k (p^S - p^T)^2 \cdot mean_c (F^S - F^T)^2)

    where p are the probabilities. The student's logits receive a gradient, too.

    Unverified: this follows an old version of mmrazor, not code of the authors. There p
    are the raw logits (`legacy_logits`).

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        student_cls: Logits (N, A * K, H, W).
        teacher_cls: The same shape; receives no gradient.
        legacy_logits: Compare logits instead of probabilities.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If the features differ in shape, if the logits differ in shape, or
            if features and logits differ in N, H or W.

    Example:
        >>> maps, logits = torch.ones(1, 3, 2, 2), torch.zeros(1, 4, 2, 2)
        >>> guided_feature_error(maps, 0 * maps, logits, logits + 100)
        tensor(0.2500)
    """
    check_maps(student, teacher)
    check_predictions(student_cls, teacher_cls)
    _check_logits(student, student_cls)
    if not legacy_logits:
        student_cls, teacher_cls = student_cls.sigmoid(), teacher_cls.sigmoid()
    guide = (student_cls - teacher_cls).square().mean(1)
    return (guide * (student - teacher).square().mean(1)).mean()


def _check_logits(student: Tensor, student_cls: Tensor) -> None:
    sizes = [(len(x), *x.shape[2:]) for x in (student, student_cls)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f'features {tuple(student.shape)} and logits {tuple(student_cls.shape)} '
            'differ in size; record the same levels for `student` and `student_cls`'
        )


@MODELS.register_module()
class PFILoss(nn.Module):
    """Compute the PFI loss, averaged over the levels. See `guided_feature_error`.

    Args:
        legacy_logits: Compare logits instead of probabilities.
        loss_weight: Factor on the loss. Unverified: 1.5 is quoted from the paper from
            memory.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> PFILoss().loss_weight
        1.5
    """

    per_level = False

    reads_classes = True

    examples = (
        Example(
            wires=dict(
                student_cls='dense class logits', teacher_cls='dense class logits'
            )
        ),
    )

    def __init__(self, legacy_logits: bool = False, loss_weight: float = 1.5) -> None:
        super().__init__()
        check_at_least('PFILoss', 0, loss_weight=loss_weight)
        self.legacy_logits = legacy_logits
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        student_cls: list[Tensor],
        teacher_cls: list[Tensor],
    ) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W) and logits (N, A * K, H, W)."""
        levels = zip(student, teacher, student_cls, teacher_cls, strict=True)
        errors = [guided_feature_error(*maps, self.legacy_logits) for maps in levels]
        return self.loss_weight * torch.stack(errors).mean()
