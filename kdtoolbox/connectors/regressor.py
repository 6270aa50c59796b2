"""Predict the teacher's features by three convolutions (VID, arXiv:1904.05835)."""

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class RegressorConnector(nn.Module):
    """Apply three 1x1 convolutions without bias, with ReLUs between them.

    All levels share the layers.

    Args:
        in_channels: Channels of the wire.
        out_channels: Channels of the new wire and of the hidden layers.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> [level] = RegressorConnector(8, 16)([torch.zeros(2, 8, 4, 5)])
        >>> tuple(level.shape)
        (2, 16, 4, 5)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_counts(
            'RegressorConnector', in_channels=in_channels, out_channels=out_channels
        )
        self.in_channels = in_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Project levels (N, in_channels, H, W) to (N, out_channels, H, W).

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
