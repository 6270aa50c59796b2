"""Reshape the tokens of a transformer into maps."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS

Size = tuple[int, int]


@MODELS.register_module()
class TokenConnector(nn.Module):
    """Reshape tokens (N, L, C), in row-major order, into maps (N, C, H, W).

    With the wire ``like`` the maps have its heights and widths. A single tensor with
    the concatenated tokens of all levels, such as the output of a DETR encoder, is
    split into the levels of ``like``. Several tensors become one map each. Without
    ``like`` each tensor becomes a square map, as in a ViT, or in a block of a Swin on a
    square image. Nothing is copied.

    Args:
        levels: Indices of the maps that form the new wire, in this order; all by
            default. A DINO of five scales has one more level, the first, than a DINO of
            four.
        skip: Number of tokens at the start of each tensor that are not positions, such
            as the class token of a ViT.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> memory = torch.zeros(2, 8 * 10 + 4 * 5, 16)
        >>> neck = [torch.zeros(2, 16, 8, 10), torch.zeros(2, 16, 4, 5)]
        >>> [tuple(level.shape) for level in TokenConnector()([memory], neck)]
        [(2, 16, 8, 10), (2, 16, 4, 5)]
        >>> [tuple(x.shape) for x in TokenConnector(skip=1)([torch.zeros(2, 50, 16)])]
        [(2, 16, 7, 7)]
    """

    def __init__(self, levels: Sequence[int] | None = None, skip: int = 0) -> None:
        super().__init__()
        check_counts('TokenConnector', least=0, skip=skip)
        self.levels = levels
        self.skip = skip

    def forward(
        self, tokens: list[Tensor], like: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Reshape tokens (N, L, C) into maps (N, C, H, W).

        Args:
            tokens: The tokens of all levels in one tensor, or one tensor per level.
            like: Maps (N, D, H, W) of the same levels, of any number of channels.

        Raises:
            ValueError: If the tokens are not 3-D, their number is not that of the
                positions of ``like`` or of a square, or a level does not exist.
        """
        for level in tokens:
            if level.dim() != 3:
                raise ValueError(
                    f'expected tokens (N, L, C), got {tuple(level.shape)}; record the '
                    "encoder of a DETR as 'encoder', or a block of a backbone such as "
                    "'backbone.stages.2.blocks.5'"
                )
        tokens = [level[:, self.skip :] for level in tokens]
        if like is None:
            sizes = [_square(level.shape[1], self.skip) for level in tokens]
        else:
            sizes = [(level.shape[-2], level.shape[-1]) for level in like]
            if len(tokens) == 1:
                tokens = _cut(tokens[0], sizes)
        _check_counts(tokens, sizes)
        maps = [
            level.transpose(1, 2).unflatten(2, size)
            for level, size in zip(tokens, sizes, strict=True)
        ]
        return self._select(maps)

    def _select(self, maps: list[Tensor]) -> list[Tensor]:
        if self.levels is None:
            return maps
        known = range(-len(maps), len(maps))
        missing = [index for index in self.levels if index not in known]
        if missing:
            raise ValueError(
                f'levels={list(self.levels)}: there is no level {missing[0]}, the wire '
                f'has {len(maps)}; use indices from 0 to {len(maps) - 1}'
            )
        return [maps[index] for index in self.levels]


def _cut(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    counts = [height * width for height, width in sizes]
    if sum(counts) != tokens.shape[1]:
        raise ValueError(
            f'got {tokens.shape[1]} tokens, but `like` has maps of {list(sizes)}, '
            f'{sum(counts)} positions; set `like` to the maps that the transformer '
            "reads, such as the record of 'neck'"
        )
    return list(tokens.split(counts, dim=1))


def _check_counts(tokens: Sequence[Tensor], sizes: Sequence[Size]) -> None:
    found = [level.shape[1] for level in tokens]
    expected = [height * width for height, width in sizes]
    if found != expected:
        raise ValueError(
            f'got tensors of {found} tokens, but `like` has maps of '
            f'{list(sizes)}; record the same levels for both wires'
        )


def _square(count: int, skip: int) -> Size:
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(
            f'{count} tokens do not form a square; set `like` to maps of the same '
            f'size, or `skip` (now {skip}) to the number of class tokens'
        )
    return side, side
