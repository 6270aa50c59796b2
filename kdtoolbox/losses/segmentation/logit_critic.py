"""The critic of the holistic term of SKD (arXiv:1903.04197)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class SelfAttention(nn.Module):
    """Self-attention over the positions of a map (arXiv:1805.08318).

    The attended values are added with a learned factor that starts at 0.

    Args:
        channels: Channels C of the map, 8 or more.

    Example:
        >>> maps = torch.ones(2, 16, 4, 5)
        >>> torch.equal(SelfAttention(16)(maps), maps)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels // 8, channels // 8, channels)
        self.query, self.key, self.value = (
            spectral_norm(nn.Conv2d(channels, width, 1, bias=False)) for width in widths
        )
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) of the same shape."""
        query, key, value = (
            project(maps).flatten(2) for project in (self.query, self.key, self.value)
        )
        attended = value @ (query.mT @ key).softmax(-1).mT
        return maps + self.factor * attended.unflatten(2, maps.shape[2:])


class LogitCritic(nn.Module):
    """Score maps of logits: high scores mean that they look like the teacher's.

    Three convolutions of stride 2 with spectral norm, self-attention at an eighth of
    the size, and the mean over the positions: 0.46 million parameters for 19 classes.
    A new critic scores every map 0, so that the student gets no gradient before the
    critic has learned.

    Args:
        num_classes: Channels K of the logits.

    Example:
        >>> LogitCritic(19)(torch.ones(2, 19, 16, 32)).tolist()
        [0.0, 0.0]
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers += [spectral_norm(convolution), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, SelfAttention(widths[-1]))
        # Zero weights cannot have a spectral norm. A bias would cancel out.
        self.score = nn.Conv2d(widths[-1], 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores (N,) of maps (N, K, H, W)."""
        return self.score(self.layers(logits)).mean((1, 2, 3))
