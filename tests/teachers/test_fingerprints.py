import subprocess
import sys
from hashlib import blake2b

import numpy as np
import pytest
import torch

from kdtoolbox.teachers.fingerprints import fingerprint

CODE = """
import torch
from kdtoolbox.teachers.fingerprints import fingerprint
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(3)
print(*fingerprint(torch.randn(4, 3, 9, 7, generator=generator)))
"""


def images(count: int = 4, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *(size or (3, 9, 7)), generator=generator)


def test_names_do_not_depend_on_batch_order_or_layout() -> None:
    batch = images()
    names = fingerprint(batch)
    assert len({*names}) == len(names) == 4
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)
    assert fingerprint(batch.flip(0)) == names[::-1]
    assert sum((fingerprint(batch[i : i + 1]) for i in range(4)), []) == names
    # The same numbers in another memory layout.
    moved = batch.contiguous(memory_format=torch.channels_last)
    assert fingerprint(moved) == names


@pytest.mark.e2e
def test_names_do_not_depend_on_the_process() -> None:
    run = subprocess.run(
        [sys.executable, '-c', CODE], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == fingerprint(images())


def test_names_are_those_of_the_formula() -> None:
    batch = images(1, 1, 1, 6)
    expected = [0, 0]
    words = batch.numpy().tobytes()
    mask = 2**64 - 1

    def weight(position: int) -> int:
        z = (position + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return (z ^ z >> 31) | 1

    for index in range(3):
        word = int.from_bytes(words[8 * index : 8 * index + 8], 'little', signed=True)
        for which in range(2):
            term = weight(2 * index + which) * (word - (word >> 32))
            expected[which] = (expected[which] + term) & mask
    content = np.array(expected, dtype=np.uint64).tobytes()
    content += repr(((1, 1, 6), 'torch.float32')).encode()
    assert fingerprint(batch) == [blake2b(content, digest_size=16).hexdigest()]


def test_every_change_of_an_image_gives_another_name() -> None:
    image = images(1)
    changed = [image.flip(3), image.flip(1), image.roll(1, 2), -image, image.half()]
    changed += [image.reshape(1, 3, 7, 9), torch.zeros_like(image), image[:, :2]]
    for place in range(image.numel()):
        other = image.clone()
        value = other.view(-1)[place]
        other.view(-1)[place] = torch.nextafter(value, torch.tensor(9.0))
        changed.append(other)
    # Integers change only the upper bits of a float.
    counts = torch.arange(189.0).reshape(image.shape)
    changed += [
        counts,
        *(counts + torch.eye(189)[i].reshape(image.shape) for i in (0, 1)),
    ]
    swapped = counts.clone()
    swapped.view(-1)[[1, 3]] = swapped.view(-1)[[3, 1]]
    names = [name for x in [image, *changed, swapped] for name in fingerprint(x)]
    assert len({*names}) == len(names)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float16, torch.float64])
def test_all_number_types_and_odd_sizes_have_names(dtype: torch.dtype) -> None:
    batch = (images(3, 3, 5, 5) * 50).to(dtype)
    names = fingerprint(batch)
    assert len({*names}) == 3
    # A part of a batch may begin between two words.
    assert fingerprint(batch[1:]) == names[1:]


def test_a_larger_image_first_does_not_change_the_name() -> None:
    before = fingerprint(images())
    fingerprint(images(1, 3, 64, 64))
    assert fingerprint(images()) == before
