"""Resize maps to the size of another wire."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.registry import MODELS


@MODELS.register_module()
class ResizeConnector(nn.Module):
    """Resize each level of a wire to the size of the wire named by ``like``.

    The interpolation is bilinear with ``align_corners=False``. A level that already has
    the size is returned unchanged.

    Example:
        >>> import torch
        >>> small, large = torch.zeros(2, 8, 4, 5), torch.zeros(2, 16, 8, 10)
        >>> [level] = ResizeConnector()([small], [large])
        >>> tuple(level.shape)
        (2, 8, 8, 10)
    """

    def forward(self, levels: list[Tensor], like: list[Tensor]) -> list[Tensor]:
        """Resize levels (N, C, h, w) to the sizes (H, W) of ``like``.

        Raises:
            ValueError: If the two wires have different numbers of levels.
        """
        if len(levels) != len(like):
            raise ValueError(
                f'input has {len(levels)} levels, like has {len(like)}; record the '
                'same levels on both sides'
            )
        return [
            level
            if level.shape[2:] == other.shape[2:]
            else functional.interpolate(level, size=other.shape[2:], mode='bilinear')
            for level, other in zip(levels, like, strict=True)
        ]
