"""Fuse the levels of a wire, from deep to shallow (ReviewKD, arXiv:2104.09044)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class ABFConnector(nn.Module):
    """Fuse each level with the deeper levels by attention (ABF).

    The levels are processed from the deepest to the first. A 1x1 convolution projects
    the level to `mid_channels`. The fused map of the deeper level is resized to it, and
    two learned gates per position mix the two. A 3x3 convolution gives the new level.
    A batch norm follows each convolution except that of the gates. In training it needs
    more than one value per channel, so a 1x1 map of a single image is not possible.

    Deviation: the authors also resize the fused map to the teacher's size. Here a level
    keeps its size; if the teacher's differs, put a `ResizeConnector` after.

    Args:
        in_channels: Channels of each level, from shallow to deep.
        out_channels: Channels of the new wire; a list gives those of each level.
        mid_channels: Channels of the fused maps; the authors use 256 for detection.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> connector = ABFConnector([8, 8], out_channels=16, mid_channels=4)
        >>> levels = connector([torch.zeros(2, 8, 4, 6), torch.zeros(2, 8, 2, 3)])
        >>> [tuple(level.shape) for level in levels]
        [(2, 16, 4, 6), (2, 16, 2, 3)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int | Sequence[int],
        mid_channels: int,
    ) -> None:
        super().__init__()
        check_counts(
            'ABFConnector',
            in_channels=in_channels,
            out_channels=out_channels,
            mid_channels=mid_channels,
        )
        self.in_channels = list(in_channels)
        widths = out_channels
        if isinstance(widths, int):
            widths = [widths] * len(self.in_channels)
        if len(widths) != len(self.in_channels):
            raise ValueError(
                f'ABFConnector: {len(self.in_channels)} in_channels and {len(widths)} '
                'out_channels; set lists of equal length, or one number as out_channels'
            )
        self.inner = nn.ModuleList(
            _conv(width, mid_channels, 1) for width in in_channels
        )
        self.outer = nn.ModuleList(_conv(mid_channels, width, 3) for width in widths)
        self.gates = nn.ModuleList(
            nn.Conv2d(2 * mid_channels, 2, 1) for _ in in_channels[:-1]
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the fused levels (N, out_channels, H, W).

        Raises:
            ValueError: If the levels or channels of the wire do not match the config.
        """
        found = [level.shape[1] for level in levels]
        if found != self.in_channels:
            raise ValueError(
                f'expected levels of {self.in_channels} channels, the wire has '
                f'{found}; set in_channels={found}'
            )
        outputs, fused = [], None
        for index in reversed(range(len(levels))):
            level = self.inner[index](levels[index])
            if fused is not None:
                fused = functional.interpolate(fused, size=level.shape[2:])
                gates = self.gates[index](torch.cat([level, fused], 1)).sigmoid()
                level = level * gates[:, :1] + fused * gates[:, 1:]
            fused = level
            outputs.append(self.outer[index](level))
        return outputs[::-1]


def _conv(width: int, out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
