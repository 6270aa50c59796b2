"""Turn features into factors (FT, arXiv:1802.04977)."""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.losses.features.ft import factor_layers
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class TranslatorConnector(nn.Module):
    """Translate a student's features into factors, the same layers for all levels.

    Three 3x3 convolutions, the second of which changes the width, each with a batch
    norm and a leaky ReLU. `FTLoss` compares them with the factors of the teacher.

    Args:
        in_channels: Channels of the wire.
        out_channels: Channels of the factors.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> import torch
        >>> [level] = TranslatorConnector(8, 4)([torch.zeros(2, 8, 4, 5)])
        >>> tuple(level.shape)
        (2, 4, 4, 5)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_counts(
            'TranslatorConnector', in_channels=in_channels, out_channels=out_channels
        )
        widths = [in_channels, in_channels, out_channels, out_channels]
        self.in_channels = in_channels
        self.layers = factor_layers(widths)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the levels (N, in_channels, H, W) as (N, out_channels, H, W).

        Raises:
            ValueError: If the wire has other channels.
        """
        found = [level.shape[1] for level in levels]
        if set(found) != {self.in_channels}:
            raise ValueError(
                f'expected levels of {self.in_channels} channels, the wire has '
                f'{found}; set in_channels={found[0]} and record levels of one width'
            )
        return [self.layers(level) for level in levels]
