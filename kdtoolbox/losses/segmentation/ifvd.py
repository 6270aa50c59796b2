"""Intra-class feature variation distillation (IFVD, ECCV 2020).

Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.logits.pixel_labels import IGNORED, number_classes, pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

CLASSES = 256
"""The most classes per image; a fixed number avoids synchronising the GPU."""

EPS = 1e-8
"""The least norm of a feature or a centre, as in the authors' code."""


def center_similarity(features: Tensor, labels: Tensor) -> Tensor:
    r"""Compute the cosine of each pixel with the centre of its class in the image.

    .. math:: \cos(F_p, \mu_{y_p}), \quad
        \mu_k = mean_{p: y_p = k} F_p \text{ in each image}

    The gradient also flows through the centres.

    Args:
        features: Features (N, C, H, W), float32 or wider.
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class. At most
            256 classes per image.

    Returns:
        The cosines (N, H, W), undefined at ignored pixels.

    Example:
        >>> features = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])[None, :, None]
        >>> center_similarity(features, torch.tensor([[[0, 0, 1]]]))
        tensor([[[0.7071, 0.7071, 1.0000]]])
    """
    flat = features.where((labels != IGNORED)[:, None], 0).flatten(2)
    numbers = number_classes(labels).flatten(1)[:, None]
    index = numbers.where(numbers != IGNORED, CLASSES).expand_as(flat)
    # Sums instead of means: the cosine does not depend on the length of a centre.
    centers = flat.new_zeros(*flat.shape[:2], CLASSES + 1).scatter_add(2, index, flat)
    products = (flat * centers.gather(2, index)).sum(1)
    lengths = vector_norm(centers, dim=1).clamp(min=EPS).gather(1, index[:, 0])
    cosines = products / (vector_norm(flat, dim=1).clamp(min=EPS) * lengths)
    return cosines.unflatten(1, labels.shape[1:])


@full_precision
def ifvd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    legacy_count_ignored: bool = False,
) -> Tensor:
    r"""Compute the mean squared difference of pixel-to-centre similarities.

    .. math:: mean_p((s_p(S) - s_p(T))^2)

    with `center_similarity` s, over the pixels of the batch that have a class.

    Deviation: pixels without a class do not count. In the authors' code they add 0 to
    the sum but count in the divisor (`legacy_count_ignored`).

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient.
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.
        legacy_count_ignored: Whether to divide by N * H * W, as the authors' code does.

    Returns:
        A scalar, float32 or wider; 0 if no pixel has a class.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, :, None]
        >>> labels = torch.tensor([[[0, 0]]])
        >>> ifvd_loss(student, torch.ones(1, 3, 1, 2), labels)
        tensor(0.0858)
    """
    check_positions(student, teacher)
    cosines = (center_similarity(maps, labels) for maps in (student, teacher))
    valid = labels != IGNORED
    errors = torch.sub(*cosines).where(valid, 0).square()
    if legacy_count_ignored:
        return errors.mean()
    return errors.sum() / valid.sum().clamp(min=1)


@MODELS.register_module()
class IFVDLoss(nn.Module):
    """IFVD on one map, with the labels of the batch; see `ifvd_loss`.

    Args:
        legacy_count_ignored: Whether to divide by all pixels; see `ifvd_loss`.
        loss_weight: Factor on the loss. The authors use 200, CIRKD's code 20.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> IFVDLoss().loss_weight
        20.0
    """

    examples = (Example('map', 'map of other channels', pixel_labels=True),)

    def __init__(
        self, legacy_count_ignored: bool = False, loss_weight: float = 20.0
    ) -> None:
        super().__init__()
        check_at_least('IFVDLoss', 0, loss_weight=loss_weight)
        self.legacy_count_ignored = legacy_count_ignored
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
                'IFVDLoss needs pixel labels, but the data samples have no '
                '`gt_sem_seg`; distil a segmentor, or load the labels with '
                "dict(type='LoadAnnotations') in the pipeline"
            )
        loss = ifvd_loss(student, teacher, labels, self.legacy_count_ignored)
        return self.loss_weight * loss
