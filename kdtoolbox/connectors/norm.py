"""Normalise the channels of a wire by batch statistics, without parameters."""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.registry import MODELS


@MODELS.register_module()
class NormConnector(nn.Module):
    """Normalise each channel of each level to mean 0 and variance 1.

    The statistics are taken over N, H and W of this process, in training and in
    evaluation mode. A channel with a single value becomes 0.

    Example:
        >>> import torch
        >>> [level] = NormConnector()([torch.arange(16.0).reshape(2, 2, 2, 2)])
        >>> level.mean((0, 2, 3)).abs() < 1e-6
        tensor([True, True])
    """

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the normalised levels (N, C, H, W)."""
        return [_normalize(level) for level in levels]


def _normalize(level: Tensor) -> Tensor:
    if level.numel() == level.shape[1]:
        return level - level
    return functional.batch_norm(level, None, None, training=True)
