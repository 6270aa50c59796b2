"""Cross-image relations within a batch (CIRKD, arXiv:2204.06986).

The relations to earlier images are in `kdtoolbox.losses.segmentation.cirkd_memory`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.logits.pixel_labels import IGNORED, pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

LEAST = -1e9
"""The cosine of ignored positions; its softmax is 0."""


def cross_image_divergence(
    student: Tensor, teacher: Tensor, valid: Tensor, tau: float = 0.1
) -> Tensor:
    r"""Compute the divergence of pixel similarities within and across images.

    .. math:: mean_{i,j} \, mean_p \,
        KL(softmax_q(\langle t_{ip}, t_{jq} \rangle / \tau) \,\|\,
        softmax_q(\langle s_{ip}, s_{jq} \rangle / \tau))

    with embeddings of length 1, over all ordered pairs of images, including each image
    with itself. Student and teacher may have different channels. The distributions take
    8 * (N * P)^2 bytes in float32, and the gradient takes as much again.

    Args:
        student: Embeddings (N, C, P) of P positions, float32 or wider.
        teacher: Embeddings (N, C', P) of the same dtype.
        valid: Mask (N, P) of the positions that count, as p and as q.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar; 0 without valid positions.

    Example:
        >>> student, teacher = torch.ones(1, 2, 3), torch.eye(3)[None]
        >>> cross_image_divergence(student, teacher, torch.ones(1, 3) > 0, tau=1.0)
        tensor(0.1233)
    """
    student, teacher = (_cosines(x, valid) / tau for x in (student, teacher))
    terms = kd_divergence(student, teacher)
    # (N * P, N): valid positions, and images with at least one valid position.
    pairs = (valid.flatten()[:, None] & valid.any(1)).flatten()
    return terms.where(pairs, 0).sum() / pairs.sum().clamp(min=1)


def _cosines(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return rows (N * P * N, P): each position against the valid ones of an image."""
    rows = functional.normalize(embeddings, dim=1).transpose(1, 2).flatten(0, 1)
    cosines = (rows @ rows.T).unflatten(1, valid.shape)
    # Not -inf: the difference of two infinities would be NaN.
    return cosines.masked_fill(~valid, LEAST).flatten(0, 1)


@MODELS.register_module()
class CIRKDMiniBatchLoss(nn.Module):
    """Pixel relations across the images of a batch; see `cross_image_divergence`.

    Embeddings are first averaged over squares of side ``pool_size``, because the cost
    grows with the square of the number of positions: the distributions of two images
    with 64 x 128 positions take 134 MB with ``pool_size=2`` and 2.1 GB with 1.

    Deviation: the authors pool only maps of 256 x 256 or larger, by 4.
    Deviation: ignored pixels are left out of the averages, and squares of ignored
    pixels are left out of the relations. The authors count them.

    Args:
        tau: Temperature.
        pool_size: Side of the squares, in positions of the map; 1 disables the pooling.
        loss_weight: Factor on the loss. The paper uses 1.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or another number is too
            small.

    Example:
        >>> loss = CIRKDMiniBatchLoss()
        >>> loss(torch.ones(2, 8, 8, 8), torch.ones(2, 16, 8, 8))
        tensor(0.)
    """

    examples = (
        Example('map', 'map of other channels', arguments=lambda s: dict(pool_size=4)),
    )

    def __init__(
        self, tau: float = 0.1, pool_size: int = 2, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_counts('CIRKDMiniBatchLoss', pool_size=pool_size)
        check_at_least('CIRKDMiniBatchLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('CIRKDMiniBatchLoss', tau)
        self.pool_size = pool_size
        self.loss_weight = loss_weight

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> Tensor:
        """Return the weighted divergence of maps (N, C, H, W) and (N, C', H, W).

        Raises:
            ValueError: If a map is not 4-D, or N, H or W differ.
        """
        check_positions(student, teacher)
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
        if labels is None:
            labels = torch.zeros_like(student[:, 0], dtype=torch.long)
        valid = (labels != IGNORED)[:, None]
        # Zeros only shorten the averages, which are normalised to length 1 later.
        student, teacher = (
            self._pool(maps.where(valid, 0)) for maps in (student, teacher)
        )
        valid = self._pool(valid.to(student.dtype))[:, 0] > 0
        loss = cross_image_divergence(student, teacher, valid, self.tau)
        return self.loss_weight * loss

    def _pool(self, maps: Tensor) -> Tensor:
        return functional.avg_pool2d(maps, self.pool_size, ceil_mode=True).flatten(2)
