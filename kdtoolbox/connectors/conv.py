"""Align channels with a learned convolution."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class ConvConnector(nn.Module):
    """Project each level of a wire to other channels by a convolution.

    Args:
        in_channels: Channels of the wire; a list creates one convolution per level, a
            number one convolution for all levels.
        out_channels: Channels of the new wire; a list sets those of each level.
        norm_cfg: Norm after the convolution, such as ``dict(type='BN')``.
        act_cfg: Activation after the norm, such as ``dict(type='ReLU')``.
        kernel_size: Size of the kernel, odd; the maps keep their size.
        bias: Whether the convolution has a bias. By default it has one unless a norm
            follows.

    Raises:
        ValueError: If an argument is out of range, or two lists differ in length.

    Example:
        >>> import torch
        >>> connector = ConvConnector(in_channels=8, out_channels=16)
        >>> [level] = connector([torch.zeros(2, 8, 4, 5)])
        >>> tuple(level.shape)
        (2, 16, 4, 5)
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        kernel_size: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        check_counts(
            'ConvConnector', in_channels=in_channels, out_channels=out_channels
        )
        check_counts('ConvConnector', odd=True, kernel_size=kernel_size)
        self.shared = isinstance(in_channels, int)
        widths = [in_channels] if isinstance(in_channels, int) else in_channels
        targets = out_channels
        if isinstance(targets, int):
            targets = [targets] * len(widths)
        elif self.shared or len(targets) != len(widths):
            raise ValueError(
                f'ConvConnector: out_channels={list(targets)} has one number per '
                f'level, and in_channels={in_channels!r} not; give both for each level'
            )
        self.convs = nn.ModuleList(
            ConvModule(
                width,
                target,
                kernel_size,
                padding=kernel_size // 2,
                bias='auto' if bias is None else bias,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )
            for width, target in zip(widths, targets, strict=True)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Project levels (N, in_channels, H, W) to (N, out_channels, H, W).

        Raises:
            ValueError: If the levels or channels of the wire do not match the config.
        """
        convs = list(self.convs) * (len(levels) if self.shared else 1)
        found = [level.shape[1] for level in levels]
        expected = [conv.in_channels for conv in convs]
        if found != expected:
            raise ValueError(
                f'expected levels of {expected} channels, the wire has {found}; set '
                f'in_channels={found[0] if len(set(found)) == 1 else found}'
            )
        return [conv(level) for conv, level in zip(convs, levels, strict=True)]
