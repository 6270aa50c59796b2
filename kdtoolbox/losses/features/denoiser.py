"""The networks of DiffKD (arXiv:2305.15712)."""

from torch import Tensor, nn

TIMES = 1000
"""Number of time steps of the noise schedule."""


class BatchNorm(nn.BatchNorm2d):
    """A batch norm without running statistics that accepts one value per channel.

    Args:
        channels: Channels of the map.

    Example:
        >>> BatchNorm(1)(torch.ones(1, 1, 1, 1)).item()
        0.0
    """

    def __init__(self, channels: int) -> None:
        # Losses run only in training, so running statistics would be unused.
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps (N, C, H, W) by the statistics of the batch."""
        if maps.numel() > maps.shape[1]:
            return super().forward(maps)
        # PyTorch raises for one value per channel; the normalised value would be 0.
        scale, bias = (x[:, None, None] for x in (self.weight, self.bias))
        return 0 * maps * scale + bias


class _Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        width = max(channels // reduction, 1)
        self.block = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1),
            BatchNorm(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        # No backward pass reads the output of the last norm.
        return self.block(maps).add_(maps)


class Denoiser(nn.Module):
    """A network that predicts the noise in maps.

    Args:
        channels: Channels of the maps.

    Example:
        >>> Denoiser(8)(torch.ones(2, 8, 4, 5), torch.tensor([0, 999])).shape
        torch.Size([2, 8, 4, 5])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.times = nn.Embedding(TIMES, channels)
        self.blocks = nn.Sequential(
            _Bottleneck(channels, 4),
            _Bottleneck(channels, 4),
            nn.Conv2d(channels, channels, 1),
            BatchNorm(channels),
        )

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        """Return the noise in maps (N, C, H, W) at time steps (N,), long."""
        return self.blocks(noisy + self.times(times)[..., None, None])


class NoiseAdapter(nn.Module):
    """A network that predicts the share of the student's map in its mix with noise.

    Args:
        channels: Channels of the maps.

    Example:
        >>> NoiseAdapter(8)(torch.ones(2, 8, 4, 5)).shape
        torch.Size([2, 1, 1, 1])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _Bottleneck(channels, 8)
        self.scores = nn.Linear(channels, 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the shares (N, 1, 1, 1) for maps (N, C, H, W)."""
        scores = self.scores(self.block(maps).mean((2, 3)))
        return scores.softmax(1)[:, :1, None, None]
