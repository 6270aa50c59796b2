"""General instance distillation (GID, arXiv:2103.02340)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.boxes import box_areas, box_intersections
from kdtoolbox.losses.detection.gid_instances import Pair, general_instances
from kdtoolbox.losses.detection.pooling import pool_boxes
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps, check_predictions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

CELLS = 10
"""Number of pooled cells along each side of an instance."""

MATCH = 0.5
"""Smallest IoU of an anchor that is matched to an instance."""

ROUNDING = 1e-12
"""Squared distance, relative to the squared norms, below which two rows are equal."""


@full_precision
def relation_error(student: Tensor, teacher: Tensor, exist: Tensor) -> Tensor:
    r"""Compute the error of the pairwise distances of instances.

    .. math:: \frac{1}{n^2 - n} \sum_{i, j} smoothL1(D^S_{ij} - D^T_{ij})

    D are Euclidean distances, divided by the mean of the positive distances. With fewer
    than three instances the error is 0.

    Args:
        student: Rows (I, C).
        teacher: The same shape; receives no gradient.
        exist: Mask (I,) of the rows that count.

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0]])
        >>> relation_error(rows, 2 * rows + 5, torch.ones(3) > 0)
        tensor(0.)
    """
    pairs, count = exist & exist[:, None], exist.sum()
    found, goal = (_distances(rows, pairs) for rows in (student, teacher))
    error = functional.smooth_l1_loss(found, goal, reduction='none')
    total = error.where(pairs & (count > 2), 0).sum()
    return total / (count * (count - 1)).clamp(min=1)


def _distances(rows: Tensor, pairs: Tensor) -> Tensor:
    # `torch.cdist` without a matrix product takes longer than the rest of the loss, and
    # a product in float32 would lose the precision of small distances.
    wide = rows.double()
    products = wide @ wide.mT
    sums = products.diagonal()[:, None] + products.diagonal()
    squares = sums - 2 * products
    # What is smaller comes from rounding.
    positive = pairs & (squares > ROUNDING * sums)
    distances = squares.where(positive, 1).sqrt().where(positive, 0)
    mean = distances.sum() / positive.sum().clamp(min=1)
    return (distances / mean.where(mean > 0, 1)).to(rows.dtype)


def _matched(anchors: Tensor, boxes: Tensor, exist: Tensor) -> Tensor:
    """Return the mask (N, M) of anchors (N, M, 4) that match an instance (N, I, 4)."""
    a, b = anchors[:, :, None], boxes[:, None].to(anchors.dtype)
    overlaps = box_intersections(a, b)
    matched = overlaps >= MATCH * (box_areas(a) + box_areas(b) - overlaps)
    return (matched & exist[:, None]).any(-1)


@full_precision
def _feature_errors(
    student: list[Tensor],
    teacher: list[Tensor],
    strides: list[int],
    boxes: Tensor,
    exist: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the squared error per instance and the `relation_error`."""
    student_rows, teacher_rows = (
        pool_boxes(levels, strides, boxes, exist, CELLS).flatten(0, 1)
        for levels in (student, teacher)
    )
    exist = exist.flatten()
    squares = (student_rows - teacher_rows).square().sum()
    relation = relation_error(student_rows, teacher_rows, exist)
    return squares / exist.sum().clamp(min=1), relation


@full_precision
def _summed_errors(
    student_cls: Tensor, teacher_cls: Tensor, student_reg: Tensor, teacher_reg: Tensor
) -> Tensor:
    """Return the summed errors of classes and of raw boxes (2,)."""
    entropy = functional.binary_cross_entropy_with_logits(
        student_cls, teacher_cls.sigmoid(), reduction='sum'
    )
    error = functional.smooth_l1_loss(
        student_reg, teacher_reg, reduction='sum', beta=0.1
    )
    return torch.stack([entropy, error])


def _response_errors(
    logits: list[Pair], regs: list[Pair], targets: DenseTargets, instances: Pair
) -> Pair:
    """Return the errors of classes and of raw boxes, per matched anchor."""
    terms, count = [], 0
    for priors, pair, raws in zip(targets.priors, logits, regs, strict=True):
        _, channels, *size = pair[0].shape
        anchors = channels // targets.num_classes
        matched = _matched(priors, *instances).unflatten(1, (*size, anchors))
        # This waits for the device, as NMS does anyway. A mask would compare all
        # anchors, and only some hundred of them match.
        index = matched.nonzero(as_tuple=True)
        rows = (
            maps.unflatten(1, (anchors, -1)).permute(0, 3, 4, 1, 2)[index]
            for maps in (*pair, *raws)
        )
        terms.append(_summed_errors(*rows))
        count += len(index[0])
    classes, boxes = torch.stack(terms).sum(0) / max(count, 1)
    return classes, boxes


@MODELS.register_module()
class GIDLoss(nn.Module):
    r"""Compute the GID loss of features, relations and responses.

    `general_instances` selects n instances. The terms are

    - ``feature``: the squared errors of the 10x10 cells that `pool_boxes` samples for
      each instance, summed and divided by 100 n;
    - ``relation``: the `relation_error` of the same features over the batch;
    - ``response``: ``cls_weight`` times the binary cross-entropy of the classes plus
      ``reg_weight`` times the smooth L1 error (beta 0.1) of the raw boxes, summed over
      the anchors with an IoU of at least 0.5 to an instance and divided by their
      number. For equal predictions it is the teacher's entropy.

    Deviation: boxes are clipped to the padded input when they are selected; the
    authors' code clips them in place later.

    Deviation: the authors' code defines convolutions that align the student's features
    but never calls them. Here a `ConvConnector` can do that.

    Args:
        feature_weight: Factor on ``feature``. All defaults are the authors' for
            RetinaNet.
        relation_weight: Factor on ``relation``.
        cls_weight: Factor on the classes in ``response``.
        reg_weight: Factor on the boxes in ``response``.
        loss_weight: Factor on all terms.

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
        """Return the weighted terms of features (N, C, H, W), logits and raw boxes.

        Raises:
            ValueError: If student and teacher differ in shape, if features and logits
                differ in height or width, or if the head has points instead of anchors.
        """
        features = list(zip(student, teacher, strict=True))
        logits = list(zip(student_cls, teacher_cls, strict=True))
        regs = list(zip(student_reg, teacher_reg, strict=True))
        _check(features, logits, regs, targets)
        found = general_instances(logits, regs, targets, batch_input_shape)
        feature, relation = _feature_errors(student, teacher, targets.strides, *found)
        classes, boxes = _response_errors(logits, regs, targets, found)
        terms = dict(
            feature=self.feature_weight * feature / CELLS**2,
            relation=self.relation_weight * relation,
            response=self.cls_weight * classes + self.reg_weight * boxes,
        )
        return {name: self.loss_weight * term for name, term in terms.items()}


def _check(
    features: list[Pair], logits: list[Pair], regs: list[Pair], targets: DenseTargets
) -> None:
    if targets.priors[0].shape[-1] != 4:
        raise ValueError(
            "the student's head has points instead of anchors; GID needs anchors, such "
            'as those of RetinaHead'
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
