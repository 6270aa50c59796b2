"""Distillation by decoupled features and proposals (DeFeat, arXiv:2103.14475)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.boxes import to_cells
from kdtoolbox.losses.detection.targets import pad_boxes
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.logits.class_logits import check_labels, check_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

FINEST_SIZE = 56
"""Boxes with a side below twice this number of pixels belong to the first level."""


def pyramid_levels(boxes: Tensor, num_levels: int) -> Tensor:
    r"""Return the pyramid level of each box, chosen by the size of the box.

    .. math:: \lfloor \log_2(\sqrt{area} / 56) \rfloor, \text{ clipped to the pyramid}

    Args:
        boxes: (..., 4) as (x1, y1, x2, y2) in pixels.
        num_levels: Levels of the pyramid.

    Returns:
        The indices (...), long.

    Example:
        >>> sides = torch.tensor([8.0, 111.0, 112.0, 224.0, 2000.0])
        >>> boxes = torch.stack([0 * sides, 0 * sides, sides, sides], 1)
        >>> pyramid_levels(boxes, num_levels=4)
        tensor([0, 0, 1, 2, 3])
    """
    side = (boxes[..., 2:] - boxes[..., :2]).prod(-1).sqrt()
    level = (side / FINEST_SIZE).log2().floor()
    return level.clamp(0, num_levels - 1).long()


def box_mask(boxes: Tensor, exist: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask of the cells inside any box.

    Coordinates are truncated. x2 and y2 are excluded, but each box has at least one
    cell.

    Args:
        boxes: Boxes (N, G, 4) as (x1, y1, x2, y2) in cells of the map, padded.
        exist: Mask (N, G) of the boxes that are not padding.
        size: Height and width of the map.

    Returns:
        The mask (N, H, W), boolean.

    Example:
        >>> boxes, exist = torch.tensor([[[1.2, 0.0, 3.9, 0.5]]]), torch.ones(1, 1) > 0
        >>> box_mask(boxes, exist, (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    first = boxes[..., :2].trunc()
    last = torch.maximum(boxes[..., 2:].trunc(), first + 1)
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    rows = (rows >= first[..., 1:]) & (rows < last[..., 1:]) & exist[..., None]
    columns = (columns >= first[..., :1]) & (columns < last[..., :1])
    # The product counts the boxes of each cell without one map per box.
    return rows.float().mT @ columns.float() > 0


@full_precision
def squared_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared errors of two maps, summed over the channels.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        The distances (N, H, W), float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> squared_distances(torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
        tensor([[[3., 3.]]])
    """
    check_maps(student, teacher)
    return (student - teacher).square().sum(1)


def decoupled_error(
    student: Tensor, teacher: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Compute half of the mean squared error inside a mask, and outside it.

    .. math:: \frac{\sum_{n,h,w} M \sum_c (S - T)^2}{\max(1, 2 C \sum_{n,h,w} M)}
        \quad \text{and the same with } 1 - M

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        mask: The foreground M (N, H, W), boolean.

    Returns:
        The foreground and the background term, float32 or wider. A term without cells
        is 0.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student, mask = torch.ones(1, 3, 2, 2), torch.eye(2)[None] > 0
        >>> decoupled_error(student, 3 * student * mask, mask)
        (tensor(2.), tensor(0.5000))
    """
    distances = squared_distances(student, teacher)
    channels = student.shape[1]
    foreground, background = (
        (distances * part).sum() / (2 * channels * part.sum()).clamp(min=1)
        for part in (mask, ~mask)
    )
    return foreground, background


@full_precision
def decoupled_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Compute the mean KL divergence over foreground RoIs, and over background RoIs.

    .. math:: \frac{1}{\max(1, P)} \sum_{r: y_r < K}
        KL(softmax(T_r) \,\|\, softmax(S_r)) \quad \text{and the same with } y_r = K

    P is the number of rows in the sum.

    Args:
        student: Logits (R, K + 1).
        teacher: The same shape; receives no gradient.
        labels: The class of each row (R,), long; K is the background.

    Returns:
        The foreground and the background term, float32 or wider. A term without rows
        is 0.

    Raises:
        ValueError: If the logits are not 2-D, if their shapes differ, or if the number
            of labels is not R.

    Example:
        >>> student, labels = torch.zeros(3, 2), torch.tensor([0, 0, 1])
        >>> teacher = torch.tensor([[0.0, 4.0], [0.0, 0.0], [0.0, 4.0]])
        >>> decoupled_divergence(student, teacher, labels)
        (tensor(0.3015), tensor(0.6031))
    """
    check_logits(student, teacher, (2,))
    check_labels(labels, len(student))
    log_student, log_teacher = (x.log_softmax(1) for x in (student, teacher))
    divergence = functional.kl_div(
        log_student, log_teacher, reduction='none', log_target=True
    )
    rows = divergence.sum(1)
    positive = labels < student.shape[1] - 1
    foreground, background = (
        (rows * part).sum() / part.sum().clamp(min=1) for part in (positive, ~positive)
    )
    return foreground, background


@MODELS.register_module()
class DeFeatLoss(nn.Module):
    """Compute the DeFeat loss of a feature pyramid. See `decoupled_error`.

    Each box is foreground on one level only, which `pyramid_levels` chooses by its
    size. The terms are averaged over all levels, including those without boxes.

    Deviation: boxes are scaled by the ratio of map size to padded input size, not by
    the stride. The two differ where the stride does not divide the input size.

    Args:
        foreground_weight: Factor on the foreground term. The authors' released config
            for Faster R-CNN on VOC uses 3 for it and 12 for the background.
        background_weight: Factor on the background term.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> loss = DeFeatLoss(foreground_weight=2.0)
        >>> loss.foreground_weight, loss.background_weight
        (2.0, 12.0)
    """

    per_level = False

    def __init__(
        self,
        foreground_weight: float = 3.0,
        background_weight: float = 12.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'DeFeatLoss',
            0,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            loss_weight=loss_weight,
        )
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        data_samples: Sequence[Any],
        batch_input_shape: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Return the weighted terms of maps (N, C, H, W), a list over the levels."""
        boxes, _, exist = pad_boxes(data_samples, student[0].device)
        belongs = pyramid_levels(boxes, len(student))
        terms = []
        for level, pair in enumerate(zip(student, teacher, strict=True)):
            size = (pair[0].shape[2], pair[0].shape[3])
            cells = to_cells(boxes, [batch_input_shape], size)
            mask = box_mask(cells, exist & (belongs == level), size)
            terms.append(torch.stack(decoupled_error(*pair, mask)))
        foreground, background = self.loss_weight * torch.stack(terms).mean(0)
        return dict(
            foreground=self.foreground_weight * foreground,
            background=self.background_weight * background,
        )


@MODELS.register_module()
class DeFeatRoILoss(nn.Module):
    """Compute the DeFeat loss of the class logits of RoIs. See `decoupled_divergence`.

    Deviation: the RoIs are the student's training samples (`RoIResponses`); the authors
    use the teacher's proposals. The background is the last class; the authors' code
    takes the largest label of the batch.

    Args:
        foreground_weight: Factor on the foreground term. The authors' released config
            for Faster R-CNN on VOC uses 2 for both terms.
        background_weight: Factor on the background term.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> loss, logits = DeFeatRoILoss(), torch.ones(6, 5)
        >>> loss(logits, logits, torch.arange(6) % 5)
        {'foreground': tensor(0.), 'background': tensor(0.)}
    """

    reads_classes = True

    examples = (Example('RoI logits', wires=dict(labels='RoI labels')),)

    def __init__(
        self,
        foreground_weight: float = 2.0,
        background_weight: float = 2.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'DeFeatRoILoss',
            0,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            loss_weight=loss_weight,
        )
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (R, K + 1) with labels (R,)."""
        foreground, background = decoupled_divergence(student, teacher, labels)
        return dict(
            foreground=self.loss_weight * self.foreground_weight * foreground,
            background=self.loss_weight * self.background_weight * background,
        )
