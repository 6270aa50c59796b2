"""Take some levels of a wire."""

from collections.abc import Sequence

from torch import Tensor, nn

from kdtoolbox.registry import MODELS


@MODELS.register_module()
class LevelsConnector(nn.Module):
    """Take some levels of a wire, for losses on fewer levels than a record has.

    Args:
        levels: The positions of the levels in the wire, from 0.

    Raises:
        ValueError: If `levels` is not a list of numbers from 0.

    Example:
        >>> import torch
        >>> maps = [torch.zeros(1, 8, size, size) for size in (16, 8, 4)]
        >>> [tuple(level.shape) for level in LevelsConnector([0, 2])(maps)]
        [(1, 8, 16, 16), (1, 8, 4, 4)]
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or not all(isinstance(n, int) and n >= 0 for n in levels):
            raise ValueError(
                f'LevelsConnector: expected levels=[0, ...], positions from 0, got '
                f'{levels!r}'
            )
        self.levels = list(levels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the chosen levels, unchanged.

        Raises:
            ValueError: If the wire has too few levels.
        """
        if max(self.levels) >= len(levels):
            raise ValueError(
                f'the wire has {len(levels)} levels, so `levels` may contain 0 to '
                f'{len(levels) - 1}, got {self.levels}'
            )
        return [levels[number] for number in self.levels]
