import pytest
import torch

from kdtoolbox.losses.segmentation.bit_counts import WORD, BitCounts


def numbers(*shape: int) -> torch.Tensor:
    """Return words whose bits are set and cleared without a visible order."""
    values = torch.arange(torch.Size(shape).numel()) * 2654435761 % 2**32
    return values.reshape(shape).to(torch.int32)


def bits_of(words: torch.Tensor) -> torch.Tensor:
    return torch.stack([words >> bit & 1 for bit in range(WORD)])


@pytest.mark.parametrize('size', [1, 2, 3, 7, 15, 16, 100, 256, 300])
def test_sums_count_each_bit(size: int) -> None:
    words = numbers(size, 3, 2)
    words[:, 0] = -1  # all bits: the highest count
    counts = BitCounts(words[None]).sum(1)
    assert torch.equal(counts.unpack(), bits_of(words).sum(1, dtype=torch.int32))
    again = counts.sum(1)
    assert torch.equal(again.unpack(), bits_of(words).sum((1, 2), dtype=torch.int32))


def test_counts_above_16_bits() -> None:
    words = torch.full((1, 300, 300), -1, dtype=torch.int32)
    assert (BitCounts(words).sum(1).sum(1).unpack() == 300 * 300).all()


def test_windows_may_overlap_and_axes_be_permuted() -> None:
    words, index = numbers(4, 6), torch.tensor([[0, 1, 2], [2, 3, 5]])
    counts = BitCounts(words[None]).permute(0, 2, 1).sum_windows(index, 1)
    expected = bits_of(words).transpose(1, 2)[:, index].sum(2, dtype=torch.int32)
    assert torch.equal(counts.unpack(), expected)
