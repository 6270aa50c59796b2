"""Inter-class distance distillation (IDD, arXiv:2205.03650).

The distances alone; the position module, which learns to tell coordinates from the
features of both networks, is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_positions
from kdtoolbox.losses.logits.class_logits import IGNORED, number_classes, pixel_labels
from kdtoolbox.losses.segmentation.ifvd import CLASSES
from kdtoolbox.registry import MODELS


def class_distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Measure how far the classes of each image lie apart.

    .. math:: d_{ij} = \lVert \mu_i - \mu_j \rVert_2, \quad
        \mu_k = mean_{p: y_p = k} F_p \text{ in each image}

    Args:
        features: Features (N, C, H, W), float32 or wider.
        labels: Classes (N, H, W), long, `IGNORED` for pixels of none. An image may
            show 256 of them.

    Returns:
        The distances (N, 256, 256) between the classes that each image shows, in their
        order, and which pairs there are.

    Example:
        >>> features = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 4.0]])[None, :, None]
        >>> distances, exist = class_distances(features, torch.tensor([[[0, 1, 1]]]))
        >>> distances[0, :2, :2]
        tensor([[0., 5.],
                [5., 0.]])
    """
    flat = features.flatten(2)
    numbers = number_classes(labels).flatten(1)[:, None]
    index = numbers.where(numbers != IGNORED, CLASSES)
    shape = len(flat), flat.shape[1], CLASSES + 1
    sums = flat.new_zeros(shape).scatter_add(2, index.expand_as(flat), flat)
    ones = flat.new_ones(()).expand(index.shape)
    counts = flat.new_zeros(len(flat), 1, CLASSES + 1).scatter_add(2, index, ones)
    centers = (sums / counts.clamp(min=1))[..., :CLASSES].transpose(1, 2)
    # The fast mode takes differences of squares, which near classes do not survive.
    distances = torch.cdist(
        centers, centers, compute_mode='donot_use_mm_for_euclid_dist'
    )
    present = counts[..., :CLASSES] > 0
    return distances, present & present.transpose(1, 2)


def idd_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    r"""Compare the distances between the classes of each image.

    .. math:: \frac{1}{N} \sum_n mean_{i \ne j} \,
        \tfrac{1}{2} (d_{ij}(S_n) - d_{ij}(T_n))^2

    with `class_distances` d and the mean over the pairs of classes in image n; an image
    of a single class adds 0.

    Unverified: no code is public.

    Deviation: the mean over the pairs is a sum in the paper, as far as we know; with it
    an image of many classes outweighs the others.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient. Distances grow with the
            width, so C' = C or a connector is the fair comparison.
        labels: Classes (N, H, W), long, `IGNORED` for pixels of none.

    Returns:
        A scalar, float32 or wider; 0 if no image has two classes.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student = torch.tensor([[3.0, 0.0], [0.0, 4.0]])[None, :, None]
        >>> idd_loss(student, 2 * student, torch.tensor([[[0, 1]]]))
        tensor(12.5000)
    """
    check_positions(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        mine, exist = class_distances(student, labels)
        theirs, _ = class_distances(teacher, labels)
        errors = (mine - theirs).where(exist, 0).square().sum((1, 2)) / 2
        pairs = exist.sum((1, 2)) - exist.diagonal(dim1=1, dim2=2).sum(1)
        return (errors / pairs.clamp(min=1)).mean()


@MODELS.register_module()
class IDDLoss(nn.Module):
    """IDD on one map; see `idd_loss`. The labels come from the batch. Unverified.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> IDDLoss().loss_weight
        0.5
    """

    examples = (Example('map', 'map of other channels', pixel_labels=True),)

    def __init__(self, loss_weight: float = 0.5) -> None:
        super().__init__()
        check_at_least('IDDLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any]
    ) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W) and (N, C', H, W).

        Raises:
            ValueError: If the batch has no labels of pixels.
        """
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
        if labels is None:
            raise ValueError(
                'IDDLoss measures the distances of classes and the samples have no '
                '`gt_sem_seg`; distil a segmentor with it, or load its labels with '
                "dict(type='LoadAnnotations') in the pipeline"
            )
        return self.loss_weight * idd_loss(student, teacher, labels)
