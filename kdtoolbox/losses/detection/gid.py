"""General instance distillation (GID, arXiv:2103.02340)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.pooling import pool_boxes
from kdtoolbox.losses.detection.targets import DenseTargets, flatten_predictions
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps, check_predictions
from kdtoolbox.registry import MODELS

Pair = tuple[Tensor, Tensor]

CANDIDATES, OVERLAP, INSTANCES, SMALLEST = 3000, 0.3, 10, 10
"""Predictions of an image before the suppression, its IoU, how many boxes it leaves,
and the pixels that each of their sides needs."""

CELLS = 10
"""Cells of a pooled instance along each side."""

MATCH = 0.5
"""IoU from which an anchor learns the response of an instance."""

SLICE = 8
"""Pairs of image and anchor whose probabilities are held at once."""


@torch.no_grad()
def general_instances(
    logits: list[Pair], regs: list[Pair], targets: DenseTargets, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    r"""Find where two models disagree most, by the box of the more confident one.

    A prediction scores :math:`\max_k |\sigma(t_k) - \sigma(s_k)|`; its box is that of
    the model with the larger probability at that class. Of each image the 3000 best
    predictions go through a non-maximum suppression at IoU 0.3; the best 10 of what
    is left are kept, and of these the boxes with sides of at least 10 pixels exist.

    Args:
        logits: For each level the student's and the teacher's (N, A * K, H, W).
        regs: For each level the raw boxes (N, A * D, H, W) of both.
        targets: Decodes the boxes.
        shape: Padded (height, width), to which boxes are clipped.

    Returns:
        Boxes (N, I, 4) as (x1, y1, x2, y2) in pixels and the mask (N, I) of those that
        exist, without gradient. I is 10, or less if an image has fewer predictions.

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
        size = raws[0].shape[1] * targets.num_classes // pair[0].shape[1]
        mine, theirs = (flatten_predictions(x, size) for x in at_least_float32(*raws))
        score, of_teacher = _disagreement(*pair, targets.num_classes)
        raw = theirs.where(of_teacher[..., None], mine)
        boxes.append(targets.decode(level, raw))
        scores.append(score)
    score, box = _best(torch.cat(scores, 1), torch.cat(boxes, 1), CANDIDATES)
    x, y = box[..., 0::2].clamp(0, shape[1]), box[..., 1::2].clamp(0, shape[0])
    box = torch.stack([x, y], dim=-1).flatten(-2)
    score, box = _best(_suppress(score, box), box, INSTANCES)
    return box, (score >= 0) & (box[..., 2:] - box[..., :2] >= SMALLEST).all(-1)


def _disagreement(student: Tensor, teacher: Tensor, size: int) -> Pair:
    """Return the score (N, H * W * A) and whether the teacher's is the larger one."""
    rows = [x.reshape(-1, size, *x.shape[2:]).split(SLICE) for x in (student, teacher)]
    dtype = torch.promote_types(student.dtype, torch.float32)
    found = []
    for mine, theirs in zip(*rows, strict=True):
        difference = theirs.to(dtype).sigmoid() - mine.to(dtype).sigmoid()
        found.append(torch.stack(difference.aminmax(dim=1)))
    extremes = torch.cat(found, 1).unflatten(1, (len(student), -1))
    low, high = extremes.permute(0, 1, 3, 4, 2).flatten(2)
    return torch.maximum(high, -low), high >= -low


def _best(scores: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    scores, index = scores.topk(min(count, scores.shape[1]), dim=1)
    return scores, boxes.gather(1, index[..., None].expand(-1, -1, 4))


def _suppress(scores: Tensor, boxes: Tensor) -> Tensor:
    """Set the scores (N, M) to -1 where a better box of the image overlaps."""
    from mmcv.ops import batched_nms

    image = torch.arange(len(scores), device=scores.device)[:, None].expand_as(scores)
    # On a CPU the operator knows no other precision.
    boxes, flat = boxes.reshape(-1, 4).float(), scores.flatten().float()
    settings = dict(type='nms', iou_threshold=OVERLAP)
    _, kept = batched_nms(boxes, flat, image.flatten(), settings)
    alive = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, kept, True)
    return scores.where(alive.view_as(scores), -1)


def relation_error(student: Tensor, teacher: Tensor, exist: Tensor) -> Tensor:
    r"""Compare how far instances lie from each other.

    .. math:: \frac{1}{n^2 - n} \sum_{i, j} smoothL1(D^S_{ij} - D^T_{ij})

    D are Euclidean distances divided by the mean of the positive ones. Fewer than three
    instances give 0.

    Args:
        student: Rows (I, C).
        teacher: The same shape; receives no gradient.
        exist: Which of the rows count (I,).

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0]])
        >>> relation_error(rows, 2 * rows + 5, torch.ones(3) > 0)
        tensor(0.)
    """
    with torch.autocast(student.device.type, enabled=False):
        pairs, count = exist & exist[:, None], exist.sum()
        rows = at_least_float32(student, teacher)
        mine, theirs = (_distances(x, pairs) for x in rows)
        error = functional.smooth_l1_loss(mine, theirs, reduction='none')
        total = error.where(pairs & (count > 2), 0).sum()
        return total / (count * (count - 1)).clamp(min=1)


def _distances(rows: Tensor, pairs: Tensor) -> Tensor:
    # Not by a matrix product, which would cancel the digits of small distances.
    distances = torch.cdist(rows, rows, compute_mode='donot_use_mm_for_euclid_dist')
    positive = pairs & (distances > 0)
    mean = distances.where(positive, 0).sum() / positive.sum().clamp(min=1)
    return distances / mean.where(mean > 0, 1)


def _matched(anchors: Tensor, boxes: Tensor, exist: Tensor) -> Tensor:
    """Return which anchors (N, M, 4) overlap an instance (N, I, 4) enough: (N, M)."""
    a, b = anchors[:, :, None], boxes[:, None].to(anchors.dtype)
    first = torch.maximum(a[..., :2], b[..., :2])
    last = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (last - first).clamp(min=0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    enough = overlap >= MATCH * (areas[0] + areas[1] - overlap)
    return (enough & exist[:, None]).any(-1)


def _rows(maps: Pair, anchors: int, index: tuple[Tensor, ...]) -> Pair:
    """Take rows (P, size) out of maps (N, anchors * size, H, W)."""
    views = (x.unflatten(1, (anchors, -1)).permute(0, 3, 4, 1, 2) for x in maps)
    mine, theirs = (view[index] for view in views)
    return at_least_float32(mine, theirs)


def _response_errors(
    logits: list[Pair], regs: list[Pair], targets: DenseTargets, instances: Pair
) -> Pair:
    """Return the errors of classes and raw boxes per anchor of an instance."""
    terms, count = [], 0
    for priors, pair, raws in zip(targets.priors, logits, regs, strict=True):
        _, channels, *size = pair[0].shape
        anchors = channels // targets.num_classes
        matched = _matched(priors, *instances).unflatten(1, (*size, anchors))
        # This waits for the device, as the suppression does anyway; a mask instead
        # would compare all anchors for the sake of some hundred.
        index = matched.nonzero(as_tuple=True)
        mine, theirs = _rows(pair, anchors, index)
        entropy = functional.binary_cross_entropy_with_logits(
            mine, theirs.sigmoid(), reduction='sum'
        )
        mine, theirs = _rows(raws, anchors, index)
        error = functional.smooth_l1_loss(mine, theirs, reduction='sum', beta=0.1)
        terms.append(torch.stack([entropy, error]))
        count += len(index[0])
    classes, boxes = torch.stack(terms).sum(0) / max(count, 1)
    return classes, boxes


@MODELS.register_module()
class GIDLoss(nn.Module):
    r"""Features, relations and responses of the general instances of a batch.

    With the n instances of `general_instances` the terms are

    - ``feature``: squared errors of 10x10 cells (`pool_boxes`), summed, over 100 n;
    - ``relation``: the `relation_error` of the same features over the batch;
    - ``response``: over all anchors with an IoU of at least 0.5 to an instance,
      ``cls_weight`` times the binary cross entropy of the classes and ``reg_weight``
      times the smooth L1 error (beta 0.1) of the raw boxes, summed and divided by the
      number of these anchors. At equality it is the teacher's entropy.

    Deviation: boxes are clipped to the padded input when they are found; the authors'
    code clips them in place later on.

    Deviation: the features are what the wires bring. The authors' code has convolutions
    that align the student's and never calls them; here a `ConvConnector` does it.

    Args:
        feature_weight: Factor on ``feature``; all defaults are the authors' for
            RetinaNet.
        relation_weight: Factor on ``relation``.
        cls_weight: Factor on the classes in ``response``.
        reg_weight: Factor on the boxes in ``response``.
        loss_weight: Factor on all of them.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> GIDLoss().relation_weight
        40.0
    """

    per_level = False

    reads_classes = True

    examples = (
        Example(
            wires=dict(
                student_cls='dense class logits',
                teacher_cls='dense class logits',
                student_reg='dense boxes',
                teacher_reg='dense boxes',
            )
        ),
    )

    def __init__(
        self,
        feature_weight: float = 5e-4,
        relation_weight: float = 40.0,
        cls_weight: float = 0.1,
        reg_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(
            'GIDLoss',
            0,
            feature_weight=feature_weight,
            relation_weight=relation_weight,
            cls_weight=cls_weight,
            reg_weight=reg_weight,
            loss_weight=loss_weight,
        )
        self.feature_weight = feature_weight
        self.relation_weight = relation_weight
        self.cls_weight = cls_weight
        self.reg_weight = reg_weight
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        student_cls: list[Tensor],
        teacher_cls: list[Tensor],
        student_reg: list[Tensor],
        teacher_reg: list[Tensor],
        targets: DenseTargets,
        batch_input_shape: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Compare features (N, C, H, W), logits and raw boxes of all levels.

        Raises:
            ValueError: If maps that are compared differ in shape, features and logits
                in size, or the head has points instead of anchors.
        """
        features = list(zip(student, teacher, strict=True))
        logits = list(zip(student_cls, teacher_cls, strict=True))
        regs = list(zip(student_reg, teacher_reg, strict=True))
        _check(features, logits, regs, targets)
        with torch.autocast(student[0].device.type, enabled=False):
            found = general_instances(logits, regs, targets, batch_input_shape)
            lifted = zip(*(at_least_float32(*pair) for pair in features), strict=True)
            mine, theirs = (
                pool_boxes(list(side), targets.strides, *found, CELLS).flatten(0, 1)
                for side in lifted
            )
            exist = found[1].flatten()
            feature = (mine - theirs).square().sum() / exist.sum().clamp(min=1)
            classes, boxes = _response_errors(logits, regs, targets, found)
        terms = dict(
            feature=self.feature_weight * feature / CELLS**2,
            relation=self.relation_weight * relation_error(mine, theirs, exist),
            response=self.cls_weight * classes + self.reg_weight * boxes,
        )
        return {name: self.loss_weight * term for name, term in terms.items()}


def _check(
    features: list[Pair], logits: list[Pair], regs: list[Pair], targets: DenseTargets
) -> None:
    if targets.priors[0].shape[-1] != 4:
        raise ValueError(
            'the student has a head of points; GID matches anchors, such as those of '
            'RetinaHead'
        )
    for level, found in enumerate(zip(features, logits, regs, strict=True)):
        check_maps(*found[0])
        for pair in found[1:]:
            check_predictions(*pair)
        sizes = [tuple(maps.shape[2:]) for maps, _ in found]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f'level {level}: features {sizes[0]} and logits {sizes[1]} differ in '
                'size; record the same levels for `student` and `student_cls`'
            )
