"""Prediction-guided feature imitation (PFI, arXiv:2112.04840).

Its companion of the same paper is rank mimicking, `kdtoolbox.losses.detection.rm`.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps, check_predictions
from kdtoolbox.registry import MODELS


def guided_feature_error(
    student: Tensor,
    teacher: Tensor,
    student_cls: Tensor,
    teacher_cls: Tensor,
    legacy_logits: bool = False,
) -> Tensor:
    r"""Weigh the error of features by how much the predictions differ there.

    .. math:: mean_{n,h,w}(mean_k (p^S - p^T)^2 \cdot mean_c (F^S - F^T)^2)

    with p the probabilities. The gradient reaches the student's logits too.

    Unverified: read from a former version of mmrazor, not from code of the authors;
    there p are the raw logits (`legacy_logits`).

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        student_cls: Logits (N, A * K, H, W).
        teacher_cls: The same shape; receives no gradient.
        legacy_logits: Compare the logits themselves.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If two maps that are compared differ in shape, or features and
            logits in size.

    Example:
        >>> maps, logits = torch.ones(1, 3, 2, 2), torch.zeros(1, 4, 2, 2)
        >>> guided_feature_error(maps, 0 * maps, logits, logits + 100)
        tensor(0.2500)
    """
    check_maps(student, teacher)
    check_predictions(student_cls, teacher_cls)
    _check_logits(student, student_cls)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        mine, theirs = at_least_float32(student_cls, teacher_cls)
        if not legacy_logits:
            mine, theirs = mine.sigmoid(), theirs.sigmoid()
        guide = (mine - theirs).square().mean(1)
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
    """PFI averaged over the levels; see `guided_feature_error`.

    Args:
        legacy_logits: Compare the logits instead of the probabilities.
        loss_weight: Factor on the loss. Unverified: 1.5 is recalled from the paper.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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
        """Compare maps (N, C, H, W), guided by logits (N, A * K, H, W)."""
        levels = zip(student, teacher, student_cls, teacher_cls, strict=True)
        errors = [guided_feature_error(*maps, self.legacy_logits) for maps in levels]
        return self.loss_weight * torch.stack(errors).mean()
