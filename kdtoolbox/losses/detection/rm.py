"""Rank mimicking (RM, arXiv:2112.04840)."""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_predictions
from kdtoolbox.registry import MODELS


def rank_divergence(
    student: Tensor, teacher: Tensor, gt_inds: Tensor, num_boxes: int
) -> Tensor:
    r"""KL divergence of how two models rank the predictions of each box.

    .. math:: \sum_g \sum_{j \in P_g} p_j (\log p_j - \log q_j), \quad
        p = softmax_{j \in P_g}(z^T_j), \; q = softmax_{j \in P_g}(z^S_j)

    A box with a single prediction has nothing to rank and gives 0.

    Args:
        student: Logits (N, M) of the class of the box that a prediction learns.
        teacher: The same shape; receives no gradient.
        gt_inds: The box of each prediction (N, M), -1 for none.
        num_boxes: The number G above all of them.

    Returns:
        The sum over the boxes of each image (N,), float32 or wider.

    Example:
        >>> teacher = torch.tensor([[3.0, 1.0, 9.0]]).log()
        >>> gt_inds = torch.tensor([[0, 0, -1]])
        >>> rank_divergence(torch.zeros(1, 3), teacher, gt_inds, num_boxes=1)
        tensor([0.1308])
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        # Whatever learns no box is a group of one, which adds 0: nothing has to be
        # selected, and no two of them meet in one sum.
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
    # Gathered before the log: a group without a member has none.
    return shifted - total.gather(1, groups).log()


def logits_of_class(maps: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pick from the logits of each prediction that of its own class.

    Args:
        maps: Logits (N, A * K, H, W).
        labels: Classes (N, H * W * A); those that are none give any logit.
        num_classes: The number K.

    Returns:
        Logits (N, H * W * A).

    Example:
        >>> maps = torch.arange(6.0).reshape(1, 6, 1, 1)
        >>> logits_of_class(maps, torch.tensor([[2, 0]]), num_classes=3)
        tensor([[2., 3.]])
    """
    count, _, height, width = maps.shape
    index = labels.clamp(0, num_classes - 1).reshape(count, height, width, -1)
    # The labels are brought into the order of the maps: the other way copies the maps.
    index = index.movedim(3, 1)[:, :, None]
    picked = maps.unflatten(1, (-1, num_classes)).gather(2, index)
    return picked.squeeze(2).movedim(1, 3).flatten(1)


@MODELS.register_module()
class RMLoss(nn.Module):
    """RM over the positive predictions of all levels; see `rank_divergence`.

    The student's own assignment says which predictions learn a box, for both models.
    The sum over the boxes of an image is divided by their number, those without a
    positive prediction included, and averaged over the images.

    Unverified: read from a former version of mmrazor, not from code of the authors.

    Deviation: an image without ground truth gives 0, where mmrazor divides by zero.

    Args:
        loss_weight: Factor on the loss. Unverified: 4 is recalled from the paper.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

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
        """Compare the logits (N, A * K, H, W) of all levels.

        Raises:
            ValueError: If the maps of a level differ in shape, or are not those of all
                predictions that the head trains.
        """
        for pair in zip(student, teacher, strict=True):
            check_predictions(*pair)
        _check_predictions(student, targets)
        gt_inds = torch.cat(targets.gt_inds, dim=1)
        _, _, exist = pad_boxes(data_samples, gt_inds.device)
        # Autocast does not know how to concatenate every half precision.
        with torch.autocast(gt_inds.device.type, enabled=False):
            mine, theirs = (_ranked(levels, targets) for levels in (student, teacher))
            divergence = rank_divergence(mine, theirs, gt_inds, exist.shape[1])
        return self.loss_weight * (divergence / exist.sum(1).clamp(min=1)).mean()


def _ranked(levels: list[Tensor], targets: DenseTargets) -> Tensor:
    pairs = zip(levels, targets.labels, strict=True)
    picked = [logits_of_class(*pair, targets.num_classes) for pair in pairs]
    return torch.cat(picked, dim=1)


def _check_predictions(student: list[Tensor], targets: DenseTargets) -> None:
    found = [level[0].numel() for level in student]
    expected = [label.shape[1] * targets.num_classes for label in targets.labels]
    if found != expected:
        raise ValueError(
            f'the levels of the wire have {found} values per image, the head trains '
            f'{expected} logits; record its last layer of the classification on all '
            "levels, such as 'bbox_head.retina_cls'"
        )
