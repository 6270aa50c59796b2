"""The paraphraser of factor transfer (FT, arXiv:1802.04977)."""

from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.1
"""Slope of the leaky ReLU below zero."""


class _BatchNorm(nn.BatchNorm2d):
    """A batch norm that uses running statistics for a single value per channel."""

    def forward(self, maps: Tensor) -> Tensor:
        if maps.numel() > maps.shape[1]:
            return super().forward(maps)
        mean, variance = self.running_mean, self.running_var
        return functional.batch_norm(
            maps, mean, variance, self.weight, self.bias, eps=self.eps
        )


def factor_layers(widths: list[int]) -> nn.Sequential:
    """Build 3x3 convolutions, each followed by a batch norm and a leaky ReLU.

    Args:
        widths: Channels of the input and of each convolution's output.

    Returns:
        The layers; maps keep their size.

    Example:
        >>> len(factor_layers([8, 8, 4, 4]))
        9
    """
    layers: list[nn.Module] = []
    for width, out in zip(widths[:-1], widths[1:], strict=True):
        layers += [
            nn.Conv2d(width, out, 3, padding=1),
            _BatchNorm(out),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's features, whose code is the factor.

    Args:
        channels: Channels of the teacher.
        factor_channels: Channels of the factors.

    Example:
        >>> factor, decoded = Paraphraser(8, 4)(torch.zeros(2, 8, 5, 6))
        >>> tuple(factor.shape), tuple(decoded.shape)
        ((2, 4, 5, 6), (2, 8, 5, 6))
    """

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        widths = [channels, channels, factor_channels, factor_channels]
        self.encoder = factor_layers(widths)
        self.decoder = factor_layers(widths[::-1])

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors (N, K, H, W) and the decoded maps (N, C, H, W)."""
        factor = self.encoder(maps)
        return factor, self.decoder(factor)
