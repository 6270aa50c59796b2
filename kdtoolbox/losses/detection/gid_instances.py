"""General instances of GID (arXiv:2103.02340): boxes where two models disagree."""

import torch
from torch import Tensor

from kdtoolbox.losses.detection.targets import DenseTargets, flatten_predictions
from kdtoolbox.losses.precision import full_precision

Pair = tuple[Tensor, Tensor]

CANDIDATES = 3000
"""Number of predictions per image before the non-maximum suppression (NMS)."""

OVERLAP = 0.3
"""IoU threshold of the NMS."""

INSTANCES = 10
"""Number of boxes per image after the NMS."""

SMALLEST = 10
"""Lower bound of the sides of an instance, in pixels."""

SLICE = 8
"""Maps of class logits compared at once; limits the memory for probabilities."""


@torch.no_grad()
def general_instances(
    logits: list[Pair], regs: list[Pair], targets: DenseTargets, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    r"""Find the boxes in which the predictions of student and teacher differ most.

    The score of a prediction is :math:`\max_k |\sigma(t_k) - \sigma(s_k)|`. Its box is
    that of the model with the larger probability of this class. Of each image, the
    3000 best predictions go through an NMS at IoU 0.3, and the best 10 are kept. Boxes
    with a side below 10 pixels are masked out.

    Args:
        logits: For each level the student's and the teacher's (N, A * K, H, W).
        regs: For each level the raw boxes (N, A * D, H, W) of both.
        targets: Decodes the boxes.
        shape: Padded (height, width), to which boxes are clipped.

    Returns:
        Boxes (N, I, 4) as (x1, y1, x2, y2) in pixels and the mask (N, I) of valid ones,
        without gradient. I is 10, or less if an image has fewer predictions.

    Example:
        >>> from types import SimpleNamespace
        >>> targets = SimpleNamespace(num_classes=1, decode=lambda level, raw: raw + 9)
        >>> logits = torch.tensor([-2.0, 1.0]).reshape(2, 1, 1, 1, 1)
        >>> regs = torch.tensor([[0.0, 0, 9, 9], [2, 3, 40, 20]]).reshape(2, 1, 4, 1, 1)
        >>> general_instances([(*logits,)], [(*regs,)], targets, (24, 32))
        (tensor([[[11., 12., 32., 24.]]]), tensor([[True]]))
    """
    scores, boxes = [], []
    for level, (pair, raws) in enumerate(zip(logits, regs, strict=True)):
        score, from_teacher = _disagreement(*pair, targets.num_classes)
        scores.append(score)
        boxes.append(_decode(*raws, from_teacher, level, targets))
    score, box = _best(torch.cat(scores, 1), torch.cat(boxes, 1), CANDIDATES)
    x, y = box[..., 0::2].clamp(0, shape[1]), box[..., 1::2].clamp(0, shape[0])
    box = torch.stack([x, y], dim=-1).flatten(-2)
    score, box = _best(_suppress(score, box), box, INSTANCES)
    return box, (score >= 0) & (box[..., 2:] - box[..., :2] >= SMALLEST).all(-1)


def _disagreement(student: Tensor, teacher: Tensor, classes: int) -> Pair:
    """Return the scores (N, H * W * A) and a mask: the teacher is more confident."""
    slices = (
        maps.reshape(-1, classes, *maps.shape[2:]).split(SLICE)
        for maps in (student, teacher)
    )
    found = [_extremes(*pair) for pair in zip(*slices, strict=True)]
    extremes = torch.cat(found, 1).unflatten(1, (len(student), -1))
    low, high = extremes.permute(0, 1, 3, 4, 2).flatten(2)
    return torch.maximum(high, -low), high >= -low


@full_precision
def _extremes(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the extreme differences of the probabilities, (2, P, H, W)."""
    return torch.stack((teacher.sigmoid() - student.sigmoid()).aminmax(dim=1))


@full_precision
def _decode(
    student: Tensor,
    teacher: Tensor,
    from_teacher: Tensor,
    level: int,
    targets: DenseTargets,
) -> Tensor:
    size = student[0].numel() // from_teacher.shape[1]
    rows = flatten_predictions(student, size)
    teacher_rows = flatten_predictions(teacher, size)
    return targets.decode(level, teacher_rows.where(from_teacher[..., None], rows))


def _best(scores: Tensor, boxes: Tensor, count: int) -> Pair:
    scores, index = scores.topk(min(count, scores.shape[1]), dim=1)
    return scores, boxes.gather(1, index[..., None].expand(-1, -1, 4))


def _suppress(scores: Tensor, boxes: Tensor) -> Tensor:
    """Set the scores (N, M) to -1 where the NMS removes the box."""
    from mmcv.ops import batched_nms

    image = torch.arange(len(scores), device=scores.device)[:, None].expand_as(scores)
    # On the CPU, the operator supports float32 only.
    boxes, flat = boxes.reshape(-1, 4).float(), scores.flatten().float()
    settings = dict(type='nms', iou_threshold=OVERLAP)
    _, kept = batched_nms(boxes, flat, image.flatten(), settings)
    alive = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, kept, True)
    return scores.where(alive.view_as(scores), -1)
