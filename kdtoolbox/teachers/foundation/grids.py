"""Bring the outputs of backbones to maps (N, C, h, w)."""

from typing import Any

from torch import Tensor

MOST_PREFIX_TOKENS = 16
"""More tokens than this before those of the patches mean a wrong patch size."""


def to_map(
    output: Any,
    image_size: tuple[int, int],
    patch_size: int | None,
    where: str = 'model.teacher',
) -> Tensor:
    """Return the output of a backbone as a map (N, C, h, w).

    Args:
        output: A map (N, C, h, w) or (N, h, w, C), or tokens (N, L, C) with those of
            the patches last, row by row. Tokens before them, such as class and register
            tokens, are dropped. Of two axes that both look like those of the image, the
            channels are the first.
        image_size: Height and width of the images that the backbone got.
        patch_size: Side of a patch in pixels, for tokens.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If the output is neither a map nor the tokens of a grid.

    Example:
        >>> import torch
        >>> to_map(torch.zeros(2, 1 + 3 * 5, 32), (42, 70), 14).shape
        torch.Size([2, 32, 3, 5])
        >>> to_map(torch.zeros(2, 3, 5, 32), (48, 80), None).shape
        torch.Size([2, 32, 3, 5])
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return _from_grid(output, image_size, where)
    if isinstance(output, Tensor) and output.ndim == 3:
        return _from_tokens(output, image_size, patch_size, where)
    came = f'shape {tuple(output.shape)}' if isinstance(output, Tensor) else ''
    raise ValueError(
        f'{where}: expected a map (N, C, h, w) or (N, h, w, C), or tokens (N, L, C), '
        f'from the backbone, got {came or type(output).__name__}; choose others of its '
        f'outputs by `layers`, or a model that returns maps'
    )


def _from_grid(output: Tensor, image_size: tuple[int, int], where: str) -> Tensor:
    height, width = image_size
    first, second, third = output.shape[1:]
    # The sides of a map have the ratio of the image's sides, up to rounding.
    channels_first = abs(second * width - third * height)
    channels_last = abs(first * width - second * height)
    if min(channels_first, channels_last) > height + width:
        raise ValueError(
            f'{where}: expected a map (N, C, h, w) or (N, h, w, C) of images of '
            f'{height} x {width} pixels, got shape {tuple(output.shape)}, whose sides '
            'have another ratio'
        )
    if channels_first <= channels_last:
        return output
    return output.permute(0, 3, 1, 2).contiguous()


def _from_tokens(
    tokens: Tensor, image_size: tuple[int, int], patch_size: int | None, where: str
) -> Tensor:
    if patch_size is None:
        raise ValueError(
            f'{where}: the backbone returns tokens of shape {tuple(tokens.shape)}, and '
            'the size of its patches is unknown; set `patch_size` in pixels'
        )
    height, width = (side // patch_size for side in image_size)
    prefix = tokens.shape[1] - height * width
    if not 0 <= prefix <= MOST_PREFIX_TOKENS:
        raise ValueError(
            f'{where}: expected tokens (N, L, C) of {height} x {width} patches of '
            f'{patch_size} pixels with at most {MOST_PREFIX_TOKENS} tokens before '
            f'them, got shape {tuple(tokens.shape)}; set `patch_size` to the stride of '
            'the tokens in pixels'
        )
    grid = tokens[:, prefix:].transpose(1, 2)
    return grid.reshape(len(tokens), -1, height, width).contiguous()
