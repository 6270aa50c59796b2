"""Check that tensors are box distributions, as GFL heads predict them."""

from torch import Tensor

from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.losses.inputs import check_predictions


def check_distributions(
    student: Tensor, teacher: Tensor, level: int, targets: DenseTargets
) -> None:
    """Check that two maps are logits of distributions with the same number of bins.

    Args:
        student: A map (N, 4 * bins, H, W).
        teacher: The same shape.
        level: Level of the maps.
        targets: Targets of the student's head.

    Raises:
        ValueError: If a map is not 4-D, if the shapes differ, or if the channels are
            not 4 sides of at least 2 bins.

    Example:
        >>> from types import SimpleNamespace
        >>> targets = SimpleNamespace(label_weights=[torch.ones(1, 6)])
        >>> maps = torch.zeros(1, 4 * 17, 2, 3)
        >>> check_distributions(maps, maps, 0, targets)
    """
    reg_max = teacher.shape[1] // 4 - 1 if teacher.dim() == 4 else 0
    check_predictions(
        student,
        teacher,
        'both heads need as many bins for a side of a box; set '
        f"`student.bbox_head.reg_max={reg_max}`, the teacher's, or take a teacher with "
        "the student's `reg_max`",
    )
    anchors = targets.label_weights[level].shape[1] / student[0, 0].numel()
    channels = student.shape[1]
    if channels % 4 or channels < 8 or anchors != 1:
        raise ValueError(
            f'level {level}: expected distributions (N, 4 * bins, H, W) of one box per '
            f'cell, got {tuple(student.shape)} of {anchors:g}; a GFL head predicts '
            "them in `bbox_head.gfl_reg`: record 'bbox_head.scales.*' behind it on "
            'both sides. Other heads have none: compare their boxes by '
            "type='kdtoolbox.CrossKDBoxLoss', or the features of the necks"
        )
