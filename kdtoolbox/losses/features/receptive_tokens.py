"""Receptive tokens of MasKD (arXiv:2205.14589): learned masks of features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.precision import full_precision


@full_precision
def token_masks(tokens: Tensor, features: Tensor) -> Tensor:
    r"""Compute the mask of each token on a map.

    .. math:: m_k = \sigma(\sum_c t_{k,c} F_c)

    Args:
        tokens: Tokens (T, C).
        features: Features (N, C, H, W).

    Returns:
        Masks (N, T, H, W) between 0 and 1, float32 or wider.

    Example:
        >>> tokens = torch.tensor([[0.0, 0.0], [100.0, -100.0]])
        >>> features = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        >>> token_masks(tokens, features).flatten()
        tensor([0.5000, 1.0000])
    """
    # Without `expand`, PyTorch would copy the features for the product.
    logits = tokens.expand(len(features), -1, -1) @ features.flatten(2)
    return logits.sigmoid().unflatten(2, features.shape[2:])


@full_precision
def dice_similarity(masks: Tensor) -> Tensor:
    r"""Compute the mean Dice similarity of the masks of an image.

    .. math:: mean_{n, k \ne l}
        \frac{2 \sum_{hw} m_k m_l}{\sum_{hw} m_k^2 + \sum_{hw} m_l^2}

    Args:
        masks: Masks (N, T, H, W), float32 or wider.

    Returns:
        A scalar between 0 and 1; 0 for a single token.

    Example:
        >>> dice_similarity(torch.eye(2).reshape(1, 2, 1, 2))
        tensor(0.)
        >>> dice_similarity(torch.ones(1, 2, 1, 2))
        tensor(1.)
    """
    flat, count = masks.flatten(2), masks.shape[1]
    overlaps = flat @ flat.mT
    squares = overlaps.diagonal(dim1=1, dim2=2)
    sizes = squares[:, :, None] + squares[:, None]
    dice = 2 * overlaps / sizes.clamp(min=torch.finfo(masks.dtype).tiny)
    others = 1 - torch.eye(count, dtype=masks.dtype, device=masks.device)
    return (dice * others).sum() / (len(masks) * max(count * (count - 1), 1))


def _mean_of_convolution(features: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Compute the spatial mean (N, C) of the output of a zero-padded 3 x 3 convolution.

    The mean is linear, so it is a weighted sum of the nine shifted means of the input.
    Each shift drops one row and one column at most, and no convolution is needed.
    """
    total = features.sum(2)
    rows = [total - features[:, :, -1], total, total - features[:, :, 0]]
    strips = torch.stack(rows, 2)
    total = strips.sum(3)
    taps = torch.stack([total - strips[..., -1], total, total - strips[..., 0]], 3)
    means = taps.flatten(1) / (features.shape[2] * features.shape[3])
    return functional.linear(means, convolution.weight.flatten(1), convolution.bias)


class ReceptiveTokens(nn.Module):
    """Tokens for each level of a pyramid, and networks that weight their masks.

    Per level, a 3 x 3 convolution, global average pooling, a linear layer and a softmax
    predict the weights of the masks from the features. Without the networks all masks
    have the same weight.

    Args:
        channels: Channels C of the maps.
        num_levels: Number of levels of the pyramid.
        num_tokens: Number T of tokens per level.
        weighted: Whether networks predict the weights of the masks.

    Example:
        >>> tokens = ReceptiveTokens(channels=8, num_levels=2, num_tokens=6)
        >>> masks, weights = tokens(torch.zeros(2, 8, 4, 5), level=1)
        >>> tuple(masks.shape), tuple(weights.shape)
        ((2, 6, 4, 5), (2, 6))
    """

    def __init__(
        self, channels: int, num_levels: int, num_tokens: int, weighted: bool = True
    ) -> None:
        super().__init__()
        self.vectors = nn.Parameter(
            0.01 * torch.randn(num_levels, num_tokens, channels)
        )
        depth = num_levels if weighted else 0
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)
        )
        self.projections = nn.ModuleList(
            nn.Linear(channels, num_tokens) for _ in range(depth)
        )

    @full_precision
    def forward(self, features: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the masks (N, T, H, W) of a map (N, C, H, W) and their weights (N, T).

        Raises:
            ValueError: If the map does not have C channels, or the level has no tokens.
        """
        self._check(features.shape[1], level)
        masks = token_masks(self.vectors[level], features)
        if not self.projections:
            return masks, torch.full_like(masks[:, :, 0, 0], 1 / masks.shape[1])
        convolution: Any = self.convolutions[level]
        means = _mean_of_convolution(features.to(masks.dtype), convolution)
        return masks, self.projections[level](means).softmax(1)

    def _check(self, channels: int, level: int) -> None:
        num_levels, _, expected = self.vectors.shape
        if level >= num_levels:
            raise ValueError(
                f'tokens exist for num_levels={num_levels}, got level {level} (counted '
                'from 0); set num_levels to the number of levels of the maps'
            )
        if channels != expected:
            raise ValueError(
                f'tokens have channels={expected}, the maps have {channels}; set '
                f'channels={channels}'
            )
