"""The edges of classes in label maps, for BPKD (arXiv:2306.08075)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.losses.segmentation.bit_counts import WORD, BitCounts

BLOCK = 2**18
"""About how many pixels are worked on at a time, which limits the memory."""


@torch.no_grad()
def edge_shares(
    labels: Tensor, num_classes: int, size: Sequence[int], radius: int = 3
) -> Tensor:
    """Return the share of each map cell that lies on the edge of each class.

    A pixel is on the edge of a class if the square of side 2 * radius + 1 around it
    contains the class and another label: the dilation of the class minus its erosion.
    Ignored pixels count as another label, but are on no edge themselves and are left
    out of the share of their cell. The cells are those of `adaptive_avg_pool2d`.

    Each class is a bit of its pixels, so that 32 classes are dilated and counted at
    once. The cost is that of the label map, whatever the size of the result.

    Args:
        labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.
        num_classes: Number of classes K, below 32768.
        size: Height and width (h, w) of the map.
        radius: Radius of the edge, in pixels of the labels.

    Returns:
        Shares (N, K, h, w) from 0 to 1, float32; 0 in cells without valid pixels.

    Example:
        >>> labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> edge_shares(labels, 2, (1, 3), radius=1)[0, :, 0]
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """
    counts = torch.cat(list(_blocks(labels, num_classes, size, radius)), 2)
    edges, valid = counts[:, :num_classes], counts[:, num_classes, None]
    return edges / valid.clamp(min=1)


def _blocks(
    labels: Tensor, num_classes: int, size: Sequence[int], radius: int
) -> Iterator[Tensor]:
    """Yield the counts of `_count` for some rows of cells after another."""
    height, (rows, columns) = labels.shape[1], size
    # Dilation takes `radius` from each side; a row and a column of padding are left.
    pad, short = [radius, radius + 1] * 2, labels.to(torch.int16)
    # Pixels beyond the image are no other label.
    low, high = (
        functional.pad(short, pad, value=value)
        for value in (torch.iinfo(torch.int16).max, IGNORED)
    )
    across = _windows(0, columns, labels.shape[2], columns, labels.device)
    step = max(1, BLOCK * rows // max(labels.numel(), 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        down = _windows(start, stop, height, rows, labels.device)
        near = slice(start * height // rows, -(-stop * height // rows) + 2 * radius + 1)
        words = _edges(low[:, near], high[:, near], num_classes, radius)
        yield _count(words, down, across)[:, : num_classes + 1]


def _windows(
    start: int, stop: int, length: int, cells: int, device: torch.device
) -> Tensor:
    """Return the pixels of some cells (cells, n), counted from the first one's.

    Shorter windows are filled up with the pixel after the last cell.
    """
    bounds = torch.arange(start, stop + 1, device=device) * length
    first = bounds[:-1].div(cells, rounding_mode='floor')
    last = -(-bounds[1:]).div(cells, rounding_mode='floor')
    longest = -(-length // cells) + bool(length % cells)
    index = first[:, None] + torch.arange(longest, device=device)
    return index.where(index < last[:, None], last[-1]) - first[0]


def _edges(low: Tensor, high: Tensor, num_classes: int, radius: int) -> Tensor:
    """Return the classes on whose edge a pixel lies, as bits.

    Args:
        low: Labels (N, H + 2 * radius + 1, W + 2 * radius + 1), int16, with the largest
            number beyond the image.
        high: The same with the least number beyond the image.
        num_classes: Number of classes K.
        radius: Radius of the edge.

    Returns:
        Words (N, groups of 32 classes, H + 1, W + 1), int32. The bit after those of the
        classes is that of valid pixels. The last row and the last column are 0.
    """
    # A comparison or a `where` would take ten times as long as these on a CPU.
    mixed = _spread(low, radius, torch.minimum) ^ _spread(high, radius, torch.maximum)
    valid = (high[:, radius:-radius, radius:-radius] - IGNORED).bool()
    # The row below a block lies in the image.
    valid[:, -1] = False
    # All bits are set in -1.
    mask = -(mixed.bool() & valid).int()
    # A shift by less than 0, or by 32 or more, gives 0.
    one, shifts = torch.ones_like(mask[:1, :1, :1]), high.int()
    groups = [
        _spread(one << (shifts - first), radius, torch.bitwise_or).bitwise_and_(mask)
        for first in range(0, num_classes + 1, WORD)
    ]
    groups[-1] |= valid.int() << num_classes % WORD
    return torch.stack(groups, 1)


def _spread(
    maps: Tensor, radius: int, join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Join the values in the square around each pixel; maps lose `radius` a side."""
    for axis in (1, 2):
        width = 1
        while width <= 2 * radius:
            # Windows of some width give those of up to twice the width.
            step = min(width, 2 * radius + 1 - width)
            left = maps.shape[axis] - step
            maps = join(maps.narrow(axis, 0, left), maps.narrow(axis, step, left))
            width += step
    return maps


def _count(words: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return how often each bit is set in each cell.

    Args:
        words: Words (N, groups, H, W), int32.
        down: The pixels of each row of cells (h, n).
        across: The pixels of each column of cells (w, m).

    Returns:
        Counts (N, 32 * groups, h, w), int32.
    """
    counts = BitCounts(words[None]).sum_windows(down, 3)
    # Values are gathered many times faster along an axis that is not the last.
    counts = counts.permute(0, 4, 1, 2, 3).sum_windows(across, 1)
    return counts.unpack().permute(2, 3, 0, 4, 1).flatten(1, 2)
