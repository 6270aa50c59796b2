"""Boundary privileged knowledge distillation (BPKD, arXiv:2306.08075)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.cwd import channel_wise_divergence
from kdtoolbox.losses.logits.class_logits import (
    check_logits,
    check_tau,
    read_logits,
    require_labels,
)
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.logits.pixel_labels import IGNORED, pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

LEFT_OUT = -1e30
"""The logit of ignored positions in a softmax; -inf could give NaN."""


@torch.no_grad()
def edge_shares(
    labels: Tensor, num_classes: int, size: Sequence[int], radius: int = 3
) -> Tensor:
    """Return the share of each map cell that lies on the edge of each class.

    A pixel is on the edge of a class if the square of side 2 * radius + 1 around it
    contains the class and another label: the dilation of the class minus its erosion.
    Ignored pixels count as another label, but are on no edge themselves and are left
    out of the share of their cell.

    Memory at the size of the labels: a float32 map of N * K * H * W and some masks,
    about 120 MB for two Cityscapes crops of 512 x 1024.

    Args:
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.
        num_classes: Number of classes K.
        size: Height and width (h, w) of the map.
        radius: Radius of the edge, in pixels of the labels.

    Returns:
        Shares (N, K, h, w) from 0 to 1, float32; 0 in cells without valid pixels.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> edge_shares(labels, 2, (1, 3), radius=1)[0, :, 0]
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """
    valid = (labels != IGNORED)[:, None]
    classes = torch.arange(num_classes + 1, device=labels.device)[:, None, None]
    # Ignored pixels get an extra label, so that classes have an edge next to them.
    near = _dilate(labels[:, None].where(valid, num_classes) == classes, radius)
    # int16 because the default sum of booleans takes 8 bytes per pixel.
    mixed = near.sum(1, keepdim=True, dtype=torch.int16) > 1
    edges = near[:, :-1] & mixed & valid
    edge_means, valid_means = (
        functional.adaptive_avg_pool2d(mask.float(), (size[0], size[1]))
        for mask in (edges, valid)
    )
    return edge_means / valid_means.where(valid_means > 0, 1)


def _dilate(masks: Tensor, radius: int) -> Tensor:
    # Max pooling gives the same, but needs floats and is ten times slower on a CPU.
    for axis in (2, 3):
        source, masks = masks, masks.clone()
        size = source.shape[axis]
        for shift in range(1, min(radius + 1, size)):
            left = size - shift
            masks.narrow(axis, shift, left).logical_or_(source.narrow(axis, 0, left))
            masks.narrow(axis, 0, left).logical_or_(source.narrow(axis, shift, left))
    return masks


@full_precision
def bpkd_terms(
    student: Tensor,
    teacher: Tensor,
    data_samples: Sequence[Any],
    tau: float = 4.0,
    radius: int = 3,
) -> dict[str, Tensor]:
    r"""Compute CWD on the bodies of classes and KD on their edges.

    With the shares M (N, K, h, w) of `edge_shares`, the channel-wise divergence CWD and
    the pixel-wise divergence KD, both with their factor :math:`\tau^2`:

    .. math:: body = CWD((1 - M) S, (1 - M) T) \qquad
        edge = \frac{1}{N} \sum_{n,k} \frac{\sum_{hw} M_{nk} \, KD(M S, M T)_n}
            {\max(1, \sum_{hw} M_{nk})}

    Logits outside a mask are set to 0, which makes their softmax uniform.

    Unverified: the authors published no training code. The formulas follow a
    re-implementation.
    Deviation: ignored pixels are left out of both terms.

    Args:
        student: Logits (N, K, h, w).
        teacher: The same shape; receives no gradient.
        data_samples: N samples with ``gt_sem_seg``.
        tau: Temperature of all softmaxes, above 0.
        radius: Radius of the edges, in pixels of the labels.

    Returns:
        ``body`` and ``edge``, scalars, float32 or wider.

    Raises:
        ValueError: If the logits are not maps, their shapes differ, there are too few
            classes, or the samples have no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.tensor([[[0, 0, 0, 1, 1, 1]]]))
        >>> student, teacher = torch.zeros(1, 2, 1, 3), torch.ones(1, 2, 1, 3)
        >>> teacher[0, 0, 0, 1] = 5.0
        >>> samples = [SimpleNamespace(gt_sem_seg=seg)]
        >>> bpkd_terms(student, teacher, samples, tau=1.0, radius=1)['edge']
        tensor(1.2061)
    """
    check_logits(student, teacher, (4,))
    logits = read_logits(student, teacher, data_samples)
    require_labels('BPKDLoss', logits)
    valid = logits.valid[:, None]
    shares = _shares(logits.student, data_samples, radius).where(valid, 0)
    # An infinite logit times a share of 0 would be NaN.
    pair = [x.where(valid, 0) for x in (logits.student, logits.teacher)]
    student_body, teacher_body = (
        ((1 - shares) * x).masked_fill(~valid, LEFT_OUT) for x in pair
    )
    body = channel_wise_divergence(student_body, teacher_body, tau)
    divergence = kd_divergence(shares * pair[0], shares * pair[1], tau)
    weights = shares / shares.sum((2, 3), keepdim=True).clamp(min=1)
    edge = (divergence * weights.sum(1)).sum() / max(len(student), 1)
    return {'body': body, 'edge': edge}


def _shares(maps: Tensor, data_samples: Sequence[Any], radius: int) -> Tensor:
    size = data_samples[0].gt_sem_seg.data.shape[-2:]
    labels = pixel_labels(data_samples, size, maps.device)
    assert labels is not None  # noqa: S101  require_labels has checked them
    return edge_shares(labels, maps.shape[1], maps.shape[2:], radius).to(maps.dtype)


@MODELS.register_module()
class BPKDLoss(nn.Module):
    """BPKD on the logits of a segmentor; see `bpkd_terms`.

    Args:
        tau: Temperature.
        radius: Radius of the edges, in pixels of the student's training labels.
        body_weight: Factor on the body term.
        edge_weight: Factor on the edge term: the paper's 50 times its alpha of 2.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or `radius` is not an
            integer above 0.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.tensor([[[0, 0, 0, 1, 1, 1]]]))
        >>> maps = torch.ones(1, 19, 1, 3)
        >>> BPKDLoss()(maps, maps, [SimpleNamespace(gt_sem_seg=seg)])
        {'body': tensor(0.), 'edge': tensor(0.)}
    """

    reads_classes = True

    examples = (Example('class logits map', pixel_labels=True),)

    def __init__(
        self,
        tau: float = 4.0,
        radius: int = 3,
        body_weight: float = 20.0,
        edge_weight: float = 100.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('BPKDLoss', radius=radius)
        check_at_least(
            'BPKDLoss',
            0,
            body_weight=body_weight,
            edge_weight=edge_weight,
            loss_weight=loss_weight,
        )
        self.tau = check_tau('BPKDLoss', tau)
        self.radius = radius
        self.weights = {'body': body_weight, 'edge': edge_weight}
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (N, K, h, w)."""
        terms = bpkd_terms(student, teacher, data_samples, self.tau, self.radius)
        return {
            name: self.loss_weight * weight * terms[name]
            for name, weight in self.weights.items()
        }
