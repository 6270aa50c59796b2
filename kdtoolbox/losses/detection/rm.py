"""Rank mimicking (RM, arXiv:2112.04840)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_predictions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def rank_divergence(
    student: Tensor, teacher: Tensor, gt_inds: Tensor, num_boxes: int
) -> Tensor:
    r"""Compute the KL divergence of the ranking of the positives of each box.

    .. math:: \sum_g \sum_{j \in P_g} p_j (\log p_j - \log q_j), \quad
        p = softmax_{j \in P_g}(z^T_j), \; q = softmax_{j \in P_g}(z^S_j)

    :math:`P_g` are the positive predictions of box g. A box with one positive adds 0.

    Args:
        student: Logits (N, M): for each prediction the logit of the class of its box.
        teacher: The same shape; receives no gradient.
        gt_inds: Index of the box of each prediction (N, M); -1 for negatives.
        num_boxes: Number of boxes G; all indices are below it.

    Returns:
        The sum over the boxes of each image (N,), float32 or wider.

    Example:
        >>> teacher = torch.tensor([[3.0, 1.0, 9.0]]).log()
        >>> gt_inds = torch.tensor([[0, 0, -1]])
        >>> rank_divergence(torch.zeros(1, 3), teacher, gt_inds, num_boxes=1)
        tensor([0.1308])
    """
    # Each negative becomes a group of its own, which adds 0: nothing is selected.
    alone = torch.arange(gt_inds.shape[1], device=gt_inds.device) + num_boxes
    groups = gt_inds.where(gt_inds >= 0, alone)
    log_goal = _log_softmax_in(groups, teacher, num_boxes)
    log_student = _log_softmax_in(groups, student, num_boxes)
    return (log_goal.exp() * (log_goal - log_student)).sum(1)


def _log_softmax_in(groups: Tensor, logits: Tensor, num_boxes: int) -> Tensor:
    empty = logits.new_zeros(len(logits), num_boxes + logits.shape[1])
    largest = empty.scatter_reduce(
        1, groups, logits.detach(), 'amax', include_self=False
    )
    shifted = logits - largest.gather(1, groups)
    total = empty.scatter_add(1, groups, shifted.exp())
    # Gather before the log, because the sum of an empty group is 0.
    return shifted - total.gather(1, groups).log()


def logits_of_class(maps: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return for each prediction the logit of its label.

    Args:
        maps: Logits (N, A * K, H, W).
        labels: Classes (N, H * W * A). For a label outside of 0 to K - 1 the result is
            arbitrary.
        num_classes: Number of classes K.

    Returns:
        Logits (N, H * W * A).

    Example:
        >>> maps = torch.arange(6.0).reshape(1, 6, 1, 1)
        >>> logits_of_class(maps, torch.tensor([[2, 0]]), num_classes=3)
        tensor([[2., 3.]])
    """
    count, _, height, width = maps.shape
    index = labels.clamp(0, num_classes - 1).reshape(count, height, width, -1)
    # Permute the labels, not the maps: permuted maps would be copied.
    index = index.movedim(3, 1)[:, :, None]
    picked = maps.unflatten(1, (-1, num_classes)).gather(2, index)
    return picked.squeeze(2).movedim(1, 3).flatten(1)


@MODELS.register_module()
class RMLoss(nn.Module):
    """Compute the RM loss of all levels. See `rank_divergence`.

    The student's assigner decides which predictions are positive, for both models. The
    sum over the boxes of an image is divided by the number of its boxes, including
    boxes without positives. The result is averaged over the images.

    Unverified: this follows an old version of mmrazor, not code of the authors.

    Deviation: an image without ground truth gives 0; mmrazor divides by zero.

    Args:
        loss_weight: Factor on the loss. Unverified: 4 is quoted from the paper from
            memory.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> RMLoss().loss_weight
        4.0
    """

    per_level = False

    reads_classes = True

    examples = (Example('dense class logits'),)

    def __init__(self, loss_weight: float = 4.0) -> None:
        super().__init__()
        check_at_least('RMLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        data_samples: list,
        targets: DenseTargets,
    ) -> Tensor:
        """Return the weighted loss of the logits (N, A * K, H, W) of all levels.

        Raises:
            ValueError: If the maps of a level differ in shape, or their number of
                logits is not that of the head's targets.
        """
        for pair in zip(student, teacher, strict=True):
            check_predictions(*pair)
        _check_predictions(student, targets)
        gt_inds = torch.cat(targets.gt_inds, dim=1)
        _, _, exist = pad_boxes(data_samples, gt_inds.device)
        divergence = rank_divergence(
            _logits_of_targets(student, targets),
            _logits_of_targets(teacher, targets),
            gt_inds,
            exist.shape[1],
        )
        return self.loss_weight * (divergence / exist.sum(1).clamp(min=1)).mean()


@full_precision
def _logits_of_targets(levels: list[Tensor], targets: DenseTargets) -> Tensor:
    """Return the logits (N, M) of the target classes of all levels."""
    pairs = zip(levels, targets.labels, strict=True)
    picked = [logits_of_class(*pair, targets.num_classes) for pair in pairs]
    return torch.cat(picked, dim=1)


def _check_predictions(student: list[Tensor], targets: DenseTargets) -> None:
    found = [level[0].numel() for level in student]
    expected = [label.shape[1] * targets.num_classes for label in targets.labels]
    if found != expected:
        raise ValueError(
            f'the levels of the wire have {found} values per image, and the head has '
            f'targets for {expected} logits; record the last layer of its '
            "classification on all levels, such as 'bbox_head.retina_cls'"
        )
