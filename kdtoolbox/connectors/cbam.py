"""Refine maps by channel and spatial attention (CBAM, arXiv:1807.06521).

In AttnFD (arXiv:2403.05451) the learned `CBAMConnector` refines the student's maps, and
the parameter-free `FixedCBAMConnector` refines the teacher's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class CBAMConnector(nn.Module):
    r"""Refine each level by learned attention, then project it to other channels.

    .. math:: X' = X \, \sigma(M(mean_{hw} X) + M(max_{hw} X)), \quad
        X'' = X' \, \sigma(BN(conv_{7 \times 7}[max_c X', mean_c X']))

    with a two-layer perceptron M per level. A 1x1 convolution without bias and a batch
    norm project X'' to `out_channels`. In training both batch norms need more than one
    value per channel, so a 1x1 map of a single image is not possible.

    Args:
        in_channels: Channels of each level of the wire.
        out_channels: Channels of each level of the new wire, usually the teacher's.
        reduction: Factor by which the hidden layer of the perceptron is narrower.

    Raises:
        ValueError: If the two lists have different lengths.

    Example:
        >>> connector = CBAMConnector([8, 16], out_channels=[32, 64], reduction=4)
        >>> levels = connector([torch.ones(2, 8, 4, 6), torch.ones(2, 16, 2, 3)])
        >>> [tuple(level.shape) for level in levels]
        [(2, 32, 4, 6), (2, 64, 2, 3)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        reduction: int = 16,
    ) -> None:
        super().__init__()
        check_counts(
            'CBAMConnector',
            in_channels=in_channels,
            out_channels=out_channels,
            reduction=reduction,
        )
        if len(in_channels) != len(out_channels):
            raise ValueError(
                'CBAMConnector: expected in_channels and out_channels of the same '
                f'length, got {list(in_channels)} and {list(out_channels)}; write one '
                'width per level of the student and of the teacher'
            )
        self.in_channels = list(in_channels)
        self.channel_gates = nn.ModuleList(
            _perceptron(width, reduction) for width in in_channels
        )
        self.spatial_gates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))
            for _ in in_channels
        )
        self.projections = nn.ModuleList(
            _projection(*widths)
            for widths in zip(in_channels, out_channels, strict=True)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Refine levels (N, C, H, W) and project them to (N, C', H, W).

        Raises:
            ValueError: If the levels or channels of the wire do not match the config.
        """
        found = [level.shape[1] for level in levels]
        if found != self.in_channels:
            raise ValueError(
                f'expected levels of {self.in_channels} channels, the wire has '
                f'{found}; set in_channels={found}'
            )
        parts = zip(
            self.channel_gates, self.spatial_gates, self.projections, strict=True
        )
        return [
            project(_refine(level, channel, spatial))
            for level, (channel, spatial, project) in zip(levels, parts, strict=True)
        ]


def _refine(level: Tensor, channel: nn.Module, spatial: nn.Module) -> Tensor:
    gate = channel(level.mean((2, 3))) + channel(level.amax((2, 3)))
    level = level * gate.sigmoid()[:, :, None, None]
    pooled = torch.cat([level.amax(1, keepdim=True), level.mean(1, keepdim=True)], 1)
    return level * spatial(pooled).sigmoid()


def _perceptron(width: int, reduction: int) -> nn.Sequential:
    hidden = max(width // reduction, 1)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


def _projection(width: int, out: int) -> nn.Sequential:
    conv = nn.Conv2d(width, out, 1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / out))
    return nn.Sequential(conv, nn.BatchNorm2d(out))


@MODELS.register_module()
class FixedCBAMConnector(nn.Module):
    r"""Refine each level by attention without parameters.

    .. math:: X' = X \, \sigma(mean_{hw} X + max_{hw} X), \quad
        X'' = X' \, \sigma(max_c X' + mean_c X')

    Example:
        >>> [level] = FixedCBAMConnector()([torch.zeros(2, 8, 4, 6)])
        >>> tuple(level.shape)
        (2, 8, 4, 6)
    """

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the refined levels (N, C, H, W)."""
        return [_refine_fixed(level) for level in levels]


def _refine_fixed(level: Tensor) -> Tensor:
    gate = level.mean((2, 3), keepdim=True) + level.amax((2, 3), keepdim=True)
    level = level * gate.sigmoid()
    gate = level.amax(1, keepdim=True) + level.mean(1, keepdim=True)
    return level * gate.sigmoid()
