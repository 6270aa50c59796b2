"""Translate features into factors (FT, arXiv:1802.04977)."""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.losses.features.paraphraser import factor_layers
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class TranslatorConnector(nn.Module):
    """Translate the student's features into factors.

    Three 3x3 convolutions, each followed by a batch norm and a leaky ReLU; the second
    changes the width. All levels share the layers. `FTLoss` compares the factors with
    those of the teacher.

    Args:
        in_channels: Channels of the wire.
        out_channels: Channels of the factors.

    Raises:
        ValueError: If an argument is out of range.

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
        """Translate levels (N, in_channels, H, W) to (N, out_channels, H, W).

        Raises:
            ValueError: If a level does not have `in_channels` channels.
        """
        found = [level.shape[1] for level in levels]
        if set(found) != {self.in_channels}:
            raise ValueError(
                f'expected levels of {self.in_channels} channels, the wire has '
                f'{found}; set in_channels={found[0]} and record levels of one width'
            )
        return [self.layers(level) for level in levels]
