"""Fill the caches of the teachers of a recipe before a training reads them."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.datasets.seeded_sampler import images_of, load_seeded, view_of
from kdtoolbox.distillers import Distiller
from kdtoolbox.teachers import Teacher
from kdtoolbox.teachers.record_cache import RecordCache, names_of, uncached

_COMPARED = 4
"""Batches whose images are read twice, among other neighbours."""


@dataclass
class Plan:
    """What the cache of a teacher will take.

    Attributes:
        where: Config path of the cache.
        folder: Folder of the entries.
        images: Images of the data set times views.
        stored: Entries that are in the folder already.
        bytes_each: Bytes of an entry on the disk.
        free: Free bytes of the disk.
        compute: Seconds in which the teacher computes the records of an image.
        read: Seconds in which an entry is read from the disk.
    """

    where: str
    folder: Path
    images: int
    stored: int
    bytes_each: int
    free: int
    compute: float
    read: float

    @property
    def total(self) -> int:
        """The bytes of all entries."""
        return self.images * self.bytes_each

    def check(self) -> None:
        """Raise ValueError if the disk has no room for the missing entries."""
        missing = max(self.images - self.stored, 0) * self.bytes_each
        if missing > self.free:
            raise ValueError(
                f'{self.where}.path: the missing entries take {missing:,} bytes and '
                f'{self.free:,} are free in {self.folder.parent}; name a folder on '
                'another disk, reduce `views`, or record smaller maps'
            )


def recorders_of(model: Distiller) -> list[tuple[Teacher, dict]]:
    """Return the cached teachers of a distiller with what a step records of them."""
    asked = {
        name: model.wiring.recorders_of(name, model.recorders)
        for name, teacher in model.teachers.items()
        if teacher.cache is not None
    }
    return [(model.teachers[name], some) for name, some in asked.items() if some]


def steps_of(dataset: Any, views: int) -> int:
    """Return how many samples are read until all views of all images were among them.

    They are whole passes through a data set, of which a ``RepeatDataset`` holds many.
    """
    repetitions = len(dataset) // images_of(dataset)
    return -(-views // repetitions) * len(dataset)


def batches(loader: Any, views: int) -> Iterator[Mapping]:
    """Yield the batches of all views, in the order of a training in one process."""
    wanted, count = steps_of(loader.dataset, views), 0
    # A batch sampler has a sampler of its own; that of the loader is torch's then.
    own = hasattr(loader.sampler, 'set_epoch')
    sampler = loader.sampler if own else loader.batch_sampler.sampler
    for epoch in range(views):
        sampler.set_epoch(epoch)
        # A sampler without end passes through all views in its first epoch.
        for batch in loader:
            yield batch
            count += len(batch['inputs'])
            if count >= wanted:
                return


def plans(model: Distiller, loader: Any) -> Iterator[Plan]:
    """Yield the plan of each cached teacher, measured on a batch of the training."""
    batch = batch_of(loader, range(batch_size(loader)))
    inputs, samples = preprocessed(model, batch)
    for teacher, recorders in recorders_of(model):
        cache: Any = teacher.cache
        folder = cache.folder(teacher.identity(recorders, inputs.device))
        there = next(path for path in folder.absolute().parents if path.is_dir())

        def observe(some: Teacher = teacher, asked: dict = recorders) -> None:
            some.observe(asked, inputs, samples)

        with uncached():
            observe()
            compute = _seconds(observe, inputs.device)
        with TemporaryDirectory(dir=there) as scratch:
            dtype = str(cache.dtype)[6:]
            teacher.cache = RecordCache(scratch, cache.views, dtype, cache.where)
            try:
                observe()
                taken = _forget(Path(scratch))
                read = _seconds(observe, inputs.device)
            finally:
                teacher.cache = cache
        yield Plan(
            where=cache.where,
            folder=folder,
            images=cache.views * images_of(loader.dataset),
            stored=sum(1 for _ in folder.glob('*/*.safetensors')),
            bytes_each=taken // len(inputs),
            free=shutil.disk_usage(there).free,
            compute=compute / len(inputs),
            read=read / len(inputs),
        )


def share_of_hits(model: Distiller, loader: Any) -> float:
    """Return the share of images that are the same among other neighbours.

    Reads some images twice, in other batches. Those of a recipe that pads each batch to
    its largest image, or whose augmentation does not repeat, differ.
    """
    size = batch_size(loader)
    count = min(_COMPARED * size, len(loader.dataset))
    step = len(loader.dataset) / count
    indices = [int(place * step) for place in range(count)]
    mixed = [index for start in range(_COMPARED) for index in indices[start::_COMPARED]]
    first, second = (_names(model, loader, order, size) for order in (indices, mixed))
    return sum(first[index] == second[index] for index in indices) / count


def _names(
    model: Distiller, loader: Any, indices: Sequence[int], size: int
) -> dict[int, str]:
    names: dict[int, str] = {}
    for start in range(0, len(indices), size):
        chunk = indices[start : start + size]
        found = names_of(*preprocessed(model, batch_of(loader, chunk)))
        names |= zip(chunk, found, strict=True)
    return names


def batch_size(loader: Any) -> int:
    """Return the number of images in a batch of a loader."""
    size = getattr(loader.batch_sampler, 'batch_size', None) or 2
    return min(size, len(loader.dataset))


def batch_of(loader: Any, indices: Sequence[int]) -> Mapping:
    """Return the first views of some images as a batch of a loader."""
    views = [view_of(index, 0) for index in indices]
    return loader.collate_fn(load_seeded(loader.dataset, views))


def preprocessed(model: Distiller, batch: Mapping) -> tuple[Tensor, Sequence]:
    """Return the images and samples of a batch as a training step gets them."""
    data = model.data_preprocessor(dict(batch), True)
    return data['inputs'], data['data_samples']


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forget(folder: Path) -> int:
    """Drop files from the memory of the system; return their bytes on the disk."""
    taken = 0
    for path in folder.glob('*/*/*.safetensors'):
        taken += path.stat().st_blocks * 512
        # Not every system can; reading is then measured from memory.
        if hasattr(os, 'posix_fadvise'):
            with path.open('rb') as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return taken
