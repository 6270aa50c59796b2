"""Give each sample of a training a seed of its own, whoever loads it and when."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, sync_random_seed
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from torch.utils.data import Sampler

from kdtoolbox.datasets.reading import read_sample
from kdtoolbox.registry import DATA_SAMPLERS


def draw_seeds(seed: int, *place: int) -> tuple[int, int, int]:
    """Return seeds for python, numpy and torch, unlike those of any other place.

    Args:
        seed: The run's seed.
        place: What tells the draw from others, such as rank and iteration.

    Example:
        >>> draw_seeds(0, 1, 2) == draw_seeds(0, 1, 2) != draw_seeds(0, 1, 3)
        True
    """
    # The place as spawn key: as entropy, (1, 2) and (1, 2, 0) would be the same.
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    words = sequence.generate_state(4).tolist()
    return words[0], words[1], words[2] << 32 | words[3]


class SeededIndex(int):
    """An index into a data set that carries what its augmentation is seeded from."""

    # Set after the construction: an `int` is pickled, on its way to a worker, without
    # further arguments.
    place: tuple[int, ...]


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Let random augmentation follow from the place in the data alone.

    Yields the integers of another sampler and has the loader seed python, numpy and
    torch from (seed, rank, epoch, position) around each sample. So a resumed run
    augments as an uninterrupted one, with any number of workers, and dropout's draws
    stay apart from those of the data. ``tools/train.py`` puts it around the sampler of
    each recipe.

    Args:
        dataset: The data set of the loader, which gets a ``__getitems__`` of its own.
        sampler: Config of the sampler to follow.
        seed: The run's seed, as mmengine passes it; drawn if None.
    """

    def __init__(self, dataset: Any, sampler: dict, seed: int | None = None) -> None:
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.sampler = MMENGINE_DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=self.seed)
        )
        self.epoch = 0
        self._rank = get_rank()
        self._start = 0
        if hasattr(self.sampler, 'skip'):
            # mmengine asks for the attribute to choose how it resumes.
            self.skip = self._skip
        # torch's fetcher prefers it to `__getitem__`. It is set here and not in a hook
        # because some loops start their workers as soon as the loader is built, and on
        # the data set itself because hooks change the pipeline of `loader.dataset`.
        dataset.__getitems__ = partial(load_seeded, dataset)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        for position, item in enumerate(self.sampler, self._start):
            if isinstance(item, Integral):
                item = SeededIndex(item)
                item.place = (self.seed, self._rank, epoch, position)
            yield item

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Reshuffle, and draw anew, for an epoch."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self._start = num_samples


def load_seeded(dataset: Any, indices: Sequence[Any]) -> list:
    """Return the samples of a batch, each drawn from the seed of its index.

    The random states are those from before afterwards.
    """
    return [_load(dataset, index) for index in indices]


def _load(dataset: Any, index: Any) -> Any:
    if not isinstance(index, SeededIndex):
        return read_sample(dataset, index)
    states = random.getstate(), np.random.get_state()
    try:
        # No devices: a forked worker must not touch CUDA.
        with torch.random.fork_rng(devices=[]):
            for_python, for_numpy, for_torch = draw_seeds(*index.place)
            random.seed(for_python)
            np.random.seed(for_numpy)
            torch.default_generator.manual_seed(for_torch)
            return read_sample(dataset, int(index))
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
