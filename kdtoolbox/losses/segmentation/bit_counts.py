"""Count how often each bit is set in maps of integers.

A bit stands for a class: an int32 has the same memory as four booleans.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

WORD = 32
"""Bits of a word."""

_EVERY_SECOND_FIELD = {
    1: 0x55555555,
    2: 0x33333333,
    4: 0x0F0F0F0F,
    8: 0x00FF00FF,
    16: 0x0000FFFF,
}


@dataclass(frozen=True)
class BitCounts:
    """Counts of bits, several in each word.

    Attributes:
        words: Words (P, ...), int32. Field i of ``words[p]`` is the count of bit
            P * i + p.
        width: Bits of a field, 32 / P.
        most: The highest count that is possible.

    Example:
        >>> words = torch.tensor([[0b101, 0b100, 0b110]], dtype=torch.int32)
        >>> BitCounts(words).sum(1).unpack()[:4]
        tensor([1, 1, 3, 0], dtype=torch.int32)
    """

    words: Tensor
    width: int = 1
    most: int = 1

    def sum_windows(self, index: Tensor, axis: int) -> 'BitCounts':
        """Return the sums of windows along an axis of the words, not the first.

        Args:
            index: The places that each of the n windows sums up (n, length).
            axis: The axis, which then has length n.
        """
        gathered = self.words.index_select(axis, index.flatten())
        windows = gathered.unflatten(axis, index.shape)
        return replace(self, words=windows).sum(axis + 1)

    def sum(self, axis: int) -> 'BitCounts':
        """Return the counts summed over an axis of the words, not the first."""
        room = (2**self.width - 1) // self.most
        size = self.words.shape[axis]
        if size <= room:
            total = self.words.sum(axis, dtype=torch.int32)
            return BitCounts(total, self.width, size * self.most)
        if room == 1:
            return self._split().sum(axis)
        # As many at a time as a field can hold, so that few words have to be split.
        rest = size % room
        whole = self.words.narrow(axis, 0, size - rest).unflatten(axis, (-1, room))
        parts = [whole.sum(axis + 1, dtype=torch.int32)]
        if rest:
            last = self.words.narrow(axis, size - rest, rest)
            parts.append(last.sum(axis, keepdim=True, dtype=torch.int32))
        total = torch.cat(parts, axis)
        return BitCounts(total, self.width, room * self.most).sum(axis)

    def permute(self, *axes: int) -> 'BitCounts':
        """Return the counts with the axes of the words in another order."""
        return replace(self, words=self.words.permute(axes).contiguous())

    def unpack(self) -> Tensor:
        """Return the counts (32, ...), int32."""
        return self.words if self.width == WORD else self._split().unpack()

    def _split(self) -> 'BitCounts':
        """Return the same counts in fields of twice the width."""
        mask = _EVERY_SECOND_FIELD[self.width]
        words = self.words.new_empty(2, *self.words.shape)
        torch.bitwise_and(self.words, mask, out=words[0])
        torch.bitwise_right_shift(self.words, self.width, out=words[1])
        words[1].bitwise_and_(mask)
        return BitCounts(words.flatten(0, 1), 2 * self.width, self.most)
