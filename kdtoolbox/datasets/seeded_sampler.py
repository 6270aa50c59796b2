"""Seed the random augmentation of each training sample independently of the loader."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from mmengine.dataset import RepeatDataset
from mmengine.dist import get_rank, get_world_size, sync_random_seed
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from torch.utils.data import Sampler

from kdtoolbox.datasets.reading import read_sample
from kdtoolbox.registry import DATA_SAMPLERS


def draw_seeds(seed: int, *place: int) -> tuple[int, int, int]:
    """Return seeds for python, numpy and torch that differ for each place.

    Args:
        seed: The run's seed.
        place: Integers that identify the draw, such as rank and iteration.

    Example:
        >>> draw_seeds(0, 1, 2) == draw_seeds(0, 1, 2) != draw_seeds(0, 1, 3)
        True
    """
    # As entropy instead of a spawn key, (1, 2) and (1, 2, 0) would give equal seeds.
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    words = sequence.generate_state(4).tolist()
    return words[0], words[1], words[2] << 32 | words[3]


VIEW_SEED = 0
"""The seed of all views: runs with other seeds share what was computed from them."""


class SeededIndex(int):
    """An index into a data set with the seed of its augmentation.

    Attributes:
        place: The arguments of `draw_seeds`.
    """

    # Set after the construction, since the pickle of an `int`, which goes to a worker,
    # does not contain further arguments of the constructor.
    place: tuple[int, ...]


def seeded_index(index: int, *place: int) -> SeededIndex:
    """Return an index with the arguments of `draw_seeds` for its augmentation."""
    seeded = SeededIndex(index)
    seeded.place = place
    return seeded


def view_of(index: int, view: int) -> SeededIndex:
    """Return the index of an image with one of its fixed augmentations.

    Example:
        >>> view_of(7, 1), view_of(7, 1).place
        (7, (0, 7, 1))
    """
    return seeded_index(index, VIEW_SEED, index, view)


def images_of(dataset: Any) -> int:
    """Return the number of images of a data set without its repetitions.

    Example:
        >>> from mmengine.dataset import BaseDataset
        >>> images = BaseDataset(lazy_init=True)
        >>> images.data_list, images._fully_initialized = [dict(), dict()], True
        >>> images.serialize_data = False
        >>> repeated = RepeatDataset(images, times=3)
        >>> len(repeated), images_of(repeated)
        (6, 2)
    """
    if isinstance(dataset, RepeatDataset):
        return images_of(dataset.dataset)
    return len(dataset)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Seed the augmentation of each sample from its position in the training alone.

    The sampler yields the indices of another sampler. Before each sample, the loader
    seeds python, numpy and torch from (seed, rank, epoch, position), and restores
    their states afterwards. A resumed run therefore augments like an uninterrupted
    one, with any number of workers, and the augmentation does not change the random
    numbers of dropout. ``tools/train.py`` wraps the sampler of each recipe with it.

    With ``views``, each image has that many augmentations, which it gets in turn: they
    are seeded from (index, pass through the data modulo views) alone. So they are the
    same in every order of the images, in any number of processes and with every seed of
    the run: what was computed from them can be stored. Each repetition of a
    ``RepeatDataset`` counts as a pass.

    Args:
        dataset: The data set of the loader. It gets a ``__getitems__`` attribute.
        sampler: Config of the sampler to wrap.
        seed: The run's seed, as mmengine passes it. None draws one.
        views: The number of augmentations of each image; None for a new one each time.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: dict,
        seed: int | None = None,
        views: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.views = views
        self.seed = sync_random_seed() if seed is None else seed
        self.sampler = MMENGINE_DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=self.seed)
        )
        self.epoch = 0
        self._rank, self._ranks = get_rank(), get_world_size()
        self._start = 0
        if hasattr(self.sampler, 'skip'):
            # mmengine chooses how to resume by whether the attribute exists.
            self.skip = self._skip
        # torch's fetcher prefers `__getitems__` to `__getitem__`. A hook would set it
        # too late: some loops start their workers as soon as the loader is built. A
        # wrapper would hide the data set, whose pipeline some hooks change.
        dataset.__getitems__ = partial(load_seeded, dataset)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        for position, item in enumerate(self.sampler, self._start):
            if isinstance(item, Integral):
                item = self._seeded(int(item), epoch, position)
            yield item

    def _seeded(self, index: int, epoch: int, position: int) -> SeededIndex:
        if self.views is None:
            return seeded_index(index, self.seed, self._rank, epoch, position)
        # A sampler without end has one epoch and passes through the data many times.
        passed = (position * self._ranks + self._rank) // len(self.dataset)
        images = images_of(self.dataset)
        repetition, image = divmod(index, images)
        passed = (epoch + passed) * (len(self.dataset) // images) + repetition
        return view_of(image, passed % self.views)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Reshuffle and change the seeds for an epoch."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self._start = num_samples


def load_seeded(dataset: Any, indices: Sequence[Any]) -> list:
    """Return the samples of a batch, each augmented with the seed of its index.

    The random states of python, numpy and torch are restored.
    """
    return [_load(dataset, index) for index in indices]


def _load(dataset: Any, index: Any) -> Any:
    if not isinstance(index, SeededIndex):
        return read_sample(dataset, index)
    states = random.getstate(), np.random.get_state()
    try:
        # Without devices, since a forked worker must not touch CUDA.
        with torch.random.fork_rng(devices=[]):
            for_python, for_numpy, for_torch = draw_seeds(*index.place)
            random.seed(for_python)
            np.random.seed(for_numpy)
            torch.default_generator.manual_seed(for_torch)
            return read_sample(dataset, int(index))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
