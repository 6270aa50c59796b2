"""Double similarity distillation (DSD, arXiv:2107.08591)."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_logits, check_tau, read_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

EPS = 1e-5
"""The least norm of a change between two layers; smaller ones are rounding errors."""


def attention_changes(levels: Sequence[Tensor]) -> Tensor:
    r"""Compute the normalised changes of attention between all pairs of layers.

    .. math:: r_{lm} = \frac{a_m - a_l}{\lVert a_m - a_l \rVert_2}, \quad
        a_l = \frac{mean_c F_l^2}{\lVert mean_c F_l^2 \rVert_2}, \quad l < m

    with norms over the positions of each image.

    Deviation: norms are clamped to at least 1e-5 (1e-12 in a third-party code), so that
    rounding errors of layers with equal attention are not amplified.

    Args:
        levels: L features (N, C_l, H, W), float32 or wider.

    Returns:
        The changes (L * (L - 1) / 2, N, H * W).

    Example:
        >>> first = torch.tensor([[1.0, 0.0]])[None, None]
        >>> attention_changes([first, first.flip(-1)])
        tensor([[[-0.7071,  0.7071]]])
    """
    energies = [level.square().mean(1).flatten(1) for level in levels]
    attentions = [functional.normalize(energy) for energy in energies]
    changes = [later - early for early, later in combinations(attentions, 2)]
    return functional.normalize(torch.stack(changes), dim=-1, eps=EPS)


@full_precision
def dsd_pixel_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute the mean squared difference between the attention changes.

    See `attention_changes`. The mean is over pairs of layers, images and positions.

    Args:
        student: L features (N, C_l, H, W) of one size, L > 1.
        teacher: L features of the same size with any channels; receive no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If there is one layer, a map is not 4-D, or N, H or W differ.

    Example:
        >>> first = torch.tensor([[1.0, 0.0]])[None, None]
        >>> dsd_pixel_loss([first, first.flip(-1)], [first.flip(-1), first])
        tensor(2.0000)
    """
    _check_layers(student, teacher)
    return functional.mse_loss(attention_changes(student), attention_changes(teacher))


def _check_layers(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if len(student) < 2:
        raise ValueError(
            f'DSD compares layers of one network, but the wire has {len(student)}; '
            "record two or more, such as dict(layers='backbone.layer[2-4]')"
        )
    shapes = [[tuple(level.shape) for level in side] for side in (student, teacher)]
    shown = f'student {shapes[0]} and teacher {shapes[1]}'
    if any(len(shape) != 4 for side in shapes for shape in side):
        raise ValueError(f'expected maps of shape (N, C, H, W), got {shown}')
    if len({(shape[0], *shape[2:]) for side in shapes for shape in side}) > 1:
        raise ValueError(
            f'expected layers of one size, got {shown}; record stages of one stride, '
            "such as dict(layers='backbone.layer[2-4]'), and resize one side to the "
            'size of the other with a ResizeConnector under `connectors`'
        )


@MODELS.register_module()
class DSDPixelLoss(nn.Module):
    """The pixel-wise similarity term of DSD; see `dsd_pixel_loss`.

    Verified against CIRKD's code; the authors published none.

    Args:
        loss_weight: Factor on the loss. CIRKD's code uses 1000.

    Raises:
        ValueError: If `loss_weight` is not a finite number of at least 0.

    Example:
        >>> DSDPixelLoss().loss_weight
        1000.0
    """

    per_level = False

    examples = (Example('map of one size', 'map of other channels and one size'),)

    def __init__(self, loss_weight: float = 1000.0) -> None:
        super().__init__()
        check_at_least('DSDPixelLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Return the weighted loss of L maps (N, C_l, H, W) of each side."""
        return self.loss_weight * dsd_pixel_loss(student, teacher)


def category_similarity(logits: Tensor, valid: Tensor, tau: float = 4.0) -> Tensor:
    r"""Compute how much the positions of each pair of classes overlap.

    .. math:: p p^T - 1 / P, \quad p_k = softmax_{hw}(z_k / \tau)

    with z the averages of the logits over P patches of 2 x 2 pixels. 1 / P is the value
    of evenly spread classes; subtracting it keeps more digits in the differences
    between two networks.

    Args:
        logits: Logits (N, K, H, W), float32 or wider.
        valid: Mask (N, H, W) of the pixels that are not ignored.
        tau: Temperature of the softmax.

    Returns:
        The similarities (N, K, K).

    Example:
        >>> logits = torch.tensor([[80.0, 80.0, 0.0, 0.0], [0.0, 0.0, 80.0, 80.0]])
        >>> found = category_similarity(logits[None, :, None], torch.ones(1, 1, 4) > 0)
        >>> found.round(decimals=4)
        tensor([[[ 0.5000, -0.5000],
                 [-0.5000,  0.5000]]])
    """
    valid = valid[:, None]
    counts = functional.avg_pool2d(valid.to(logits.dtype), 2, ceil_mode=True)
    sums = functional.avg_pool2d(logits.where(valid, 0), 2, ceil_mode=True)
    scores = sums / counts.clamp(min=0.25) / tau
    # Not -inf: the softmax of an image without valid pixels would be NaN.
    lowest = torch.finfo(logits.dtype).min
    shares = scores.where(counts > 0, lowest).flatten(2).softmax(-1)
    shares = shares - 1 / shares.shape[-1]
    return shares @ shares.mT


@full_precision
def dsd_category_loss(
    student: Tensor,
    teacher: Tensor,
    tau: float = 4.0,
    data_samples: Sequence[Any] = (),
) -> Tensor:
    """Compute the mean squared difference between the category similarities.

    See `category_similarity`. The mean is over images and pairs of classes.

    Deviation: ignored pixels do not count; the known code counts them.

    Args:
        student: Logits (N, K, H, W).
        teacher: The same shape; receives no gradient.
        tau: Temperature of the softmax over positions, above 0.
        data_samples: The batch's samples; see `read_logits`.

    Returns:
        A scalar, float32 or wider; 0 without valid pixels.

    Raises:
        ValueError: If the logits are not maps, their shapes differ, or there is one
            class.

    Example:
        >>> logits = torch.tensor([[80.0, 80.0, 0.0, 0.0], [0.0, 0.0, 80.0, 80.0]])
        >>> dsd_category_loss(logits[None, :, None], torch.zeros(1, 2, 1, 4))
        tensor(0.2500)
    """
    check_logits(student, teacher, (4,))
    logits = read_logits(student, teacher, data_samples)
    student_similarity, teacher_similarity = (
        category_similarity(maps, logits.valid, tau)
        for maps in (logits.student, logits.teacher)
    )
    return functional.mse_loss(student_similarity, teacher_similarity)


@MODELS.register_module()
class DSDCategoryLoss(nn.Module):
    """The category-wise similarity term of DSD; see `dsd_category_loss`.

    Verified against CIRKD's code; the authors published none.

    Args:
        tau: Temperature of the softmax over positions. CIRKD's code uses 4.
        loss_weight: Factor on the loss. CIRKD's code uses 10.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or a weight is below 0.

    Example:
        >>> DSDCategoryLoss()(torch.ones(2, 19, 8, 8), torch.ones(2, 19, 8, 8))
        tensor(0.)
    """

    reads_classes = True

    examples = (Example('class logits map'),)

    def __init__(self, tau: float = 4.0, loss_weight: float = 10.0) -> None:
        super().__init__()
        check_at_least('DSDCategoryLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('DSDCategoryLoss', tau)
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted loss of logits (N, K, H, W)."""
        loss = dsd_category_loss(student, teacher, self.tau, data_samples)
        return self.loss_weight * loss
