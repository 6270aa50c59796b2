"""Align channels by a multilayer perceptron per position (arXiv:2303.13212).

The paper compares the output with the teacher by the squared error, which is `MGDLoss`
(summed) or `FitNetLoss` (averaged).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kdtoolbox.connectors.conv import ConvConnector
from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class ChannelMLPConnector(nn.Module):
    r"""Transform the channels of each position by a two-layer perceptron.

    .. math:: Y_{h,w} = W_2 \, ReLU(W_1 X_{h,w} + b_1) + b_2

    Unverified: the authors published no code. The width of the hidden layer and the
    biases are our choice.

    Args:
        in_channels: Channels of the wire; a list creates one perceptron per level, a
            number one perceptron for all levels.
        out_channels: Channels of the new wire.
        hidden_channels: Width of the hidden layer, by default `out_channels`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> connector = ChannelMLPConnector(in_channels=8, out_channels=16)
        >>> [level] = connector([torch.zeros(2, 8, 4, 5)])
        >>> tuple(level.shape)
        (2, 16, 4, 5)
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_counts('ChannelMLPConnector', in_channels=in_channels)
        check_counts('ChannelMLPConnector', out_channels=out_channels)
        if hidden_channels is not None:
            check_counts('ChannelMLPConnector', hidden_channels=hidden_channels)
        width = hidden_channels or out_channels
        shared = isinstance(in_channels, int)
        self.hidden = ConvConnector(in_channels, width, act_cfg=dict(type='ReLU'))
        widths = width if shared else [width] * len(self.hidden.convs)
        self.out = ConvConnector(widths, out_channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Transform levels (N, in_channels, H, W) to (N, out_channels, H, W).

        Raises:
            ValueError: If the levels or channels of the wire do not match the config.
        """
        return self.out(self.hidden(levels))
