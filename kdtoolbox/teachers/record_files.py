"""Files of one image's records each, read many at a time."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.recorders import Records

_LENGTH = 8
"""Bytes of the number before a header."""

_ALIGNMENT = 64
_WRITERS = 8
"""Threads; a writer mostly waits until the disk has the file."""

_DTYPES = {
    'BOOL': torch.bool,
    'U8': torch.uint8,
    'I8': torch.int8,
    'I16': torch.int16,
    'I32': torch.int32,
    'I64': torch.int64,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'F32': torch.float32,
    'F64': torch.float64,
}


class Place(NamedTuple):
    """Where a tensor of one image lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Layout(NamedTuple):
    """What the files of images of one size have in common.

    Attributes:
        size: Bytes of a file.
        head: Its first bytes: those before the numbers.
        places: For each record the places of its levels.
    """

    size: int
    head: bytes
    places: Mapping[str, list[Place]]


def write_entries(paths: Sequence[Path], records: Records) -> None:
    """Write the records (N, ...) of N images to one file each.

    A file appears as a whole or not at all, so several processes may write the same.

    Raises:
        OSError: If a file cannot be written.
    """
    entries = [
        {
            f'{k}/{i}': level[row]
            for k, v in records.items()
            for i, level in enumerate(v)
        }
        for row in range(len(paths))
    ]
    with ThreadPoolExecutor(_WRITERS) as pool:
        # `list` raises the first error of a writer.
        list(pool.map(_write, paths, entries))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    content = save({name: x.contiguous().cpu() for name, x in tensors.items()})
    path.parent.mkdir(exist_ok=True)
    with write_whole(path, len(content)) as file:
        file.write(content)


def find_layout(path: Path) -> Layout | None:
    """Return the layout of a file, or None if there is no intact file.

    The file is one that `write_entries` has written.
    """
    try:
        content = path.read_bytes()
        load(content)
    except (FileNotFoundError, SafetensorError):
        return None
    start = _LENGTH + int.from_bytes(content[:_LENGTH], 'little')
    header = json.loads(content[_LENGTH:start])
    places: dict[str, list[Place]] = {}
    levels = [key.rpartition('/') for key in header if key != '__metadata__']
    for name, _, level in sorted(levels, key=lambda parts: (parts[0], int(parts[2]))):
        found = header[f'{name}/{level}']
        first, last = found['data_offsets']
        shape = tuple(found['shape'])
        place = Place(_DTYPES[found['dtype']], shape, start + first, start + last)
        places.setdefault(name, []).append(place)
    return Layout(len(content), content[:start], places)


def read_entries(
    paths: Sequence[Path], layout: Layout, pin_memory: bool = False
) -> tuple[Tensor, list[int], list[int]]:
    """Read files of one layout into the rows of one buffer.

    `safetensors` itself makes each tensor of each file on its own, which takes ten
    times as long for the small maps of a deep level.

    Args:
        paths: The files.
        layout: Their layout.
        pin_memory: Whether the buffer will be copied to a GPU.

    Returns:
        The buffer (N, bytes), the indices of files that do not exist, and those of
        damaged files.
    """
    width = -(-layout.size // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(len(paths), width, dtype=torch.uint8, pin_memory=pin_memory)
    missing, damaged = [], []
    for index, (path, row) in enumerate(zip(paths, buffer.numpy(), strict=True)):
        try:
            with path.open('rb') as file:
                whole = os.fstat(file.fileno()).st_size == layout.size
                whole = whole and file.readinto(row[: layout.size]) == layout.size
        except FileNotFoundError:
            missing.append(index)
            continue
        if not whole or row[: len(layout.head)].tobytes() != layout.head:
            damaged.append(index)
    return buffer, missing, damaged


def records_in(buffer: Tensor, layout: Layout) -> Records:
    """Return the records (N, ...) in a buffer of `read_entries`, without a copy."""
    return {
        name: [
            buffer[:, place.start : place.stop]
            .view(place.dtype)
            .reshape(len(buffer), *place.shape)
            for place in places
        ]
        for name, places in layout.places.items()
    }
