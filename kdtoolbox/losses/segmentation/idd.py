"""Inter-class distance distillation (IDD, arXiv:2205.03650).

Only the distance loss is implemented. The paper's position module, which learns to
predict coordinates from the features of both networks, is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.logits.pixel_labels import IGNORED, number_classes, pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.ifvd import CLASSES
from kdtoolbox.registry import MODELS


def class_distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the distances between the class centres of each image.

    .. math:: d_{ij} = \lVert \mu_i - \mu_j \rVert_2, \quad
        \mu_k = mean_{p: y_p = k} F_p \text{ in each image}

    Args:
        features: Features (N, C, H, W), float32 or wider.
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class. At most
            256 classes per image.

    Returns:
        The distances (N, 256, 256) between the classes of each image in ascending
        order, and a mask of the pairs that exist.

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
    # The matmul mode subtracts squares and loses all digits for close centres.
    distances = torch.cdist(
        centers, centers, compute_mode='donot_use_mm_for_euclid_dist'
    )
    present = counts[..., :CLASSES] > 0
    return distances, present & present.transpose(1, 2)


@full_precision
def idd_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    r"""Compute the mean squared error of the class distances of each image.

    .. math:: \frac{1}{N} \sum_n mean_{i \ne j} \,
        \tfrac{1}{2} (d_{ij}(S_n) - d_{ij}(T_n))^2

    with `class_distances` d and the mean over the pairs of classes in image n. An image
    with one class adds 0.

    Unverified: no code is public.

    Deviation: to our knowledge the paper sums over the pairs, which gives more weight
    to images with many classes; here it is the mean.

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient. Distances grow with the
            number of channels: use C' = C or a connector.
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.

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
    student_distances, exist = class_distances(student, labels)
    teacher_distances, _ = class_distances(teacher, labels)
    errors = student_distances - teacher_distances
    errors = errors.where(exist, 0).square().sum((1, 2)) / 2
    pairs = exist.sum((1, 2)) - exist.diagonal(dim1=1, dim2=2).sum(1)
    return (errors / pairs.clamp(min=1)).mean()


@MODELS.register_module()
class IDDLoss(nn.Module):
    """IDD on one map, with the labels of the batch; see `idd_loss`. Unverified.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

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
            ValueError: If the batch has no pixel labels.
        """
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
        if labels is None:
            raise ValueError(
                'IDDLoss needs pixel labels, but the data samples have no '
                '`gt_sem_seg`; distil a segmentor, or load the labels with '
                "dict(type='LoadAnnotations') in the pipeline"
            )
        return self.loss_weight * idd_loss(student, teacher, labels)
