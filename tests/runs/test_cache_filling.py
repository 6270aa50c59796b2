"""What a cache will take, and how many of its entries will be found."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.dataset import BaseDataset, RepeatDataset, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Sampler

from kdtoolbox.runs.cache_filling import Plan, batches, share_of_hits, steps_of


class Pictures:
    """Images of several widths, or with an augmentation that never repeats."""

    def __init__(self, widths: list[int], random: bool = False) -> None:
        self.widths, self.random, self.drawn = widths, random, 0

    def __len__(self) -> int:
        return len(self.widths)

    def __getitem__(self, index: int) -> dict:
        width = self.widths[index]
        self.drawn += 1
        seed = self.drawn if self.random else index
        image = np.random.RandomState(seed).randint(0, 255, (3, 16, width))
        sample = DetDataSample(metainfo=dict(img_shape=(16, width)))
        return dict(inputs=torch.from_numpy(image).byte(), data_samples=sample)


def share(dataset: Pictures, **preprocessor: Any) -> float:
    model = SimpleNamespace(
        data_preprocessor=DetDataPreprocessor([0.0], [1.0], **preprocessor)
    )
    loader = SimpleNamespace(
        dataset=dataset,
        collate_fn=pseudo_collate,
        batch_sampler=SimpleNamespace(batch_size=2),
    )
    return share_of_hits(model, loader)


def test_the_share_of_hits_is_that_of_images_with_one_padded_size() -> None:
    assert share(Pictures([16] * 12)) == 1
    widths = [16, 48, 16, 16, 32, 16, 48, 16]
    assert 0 < share(Pictures(widths)) < 1
    pad = [dict(type='mmdet.BatchFixedSizePad', size=(16, 48))]
    assert share(Pictures(widths), batch_augments=pad) == 1
    assert share(Pictures([16] * 12, random=True)) == 0


class Endless(Sampler):
    def __init__(self, count: int | None) -> None:
        self.count, self.epochs = count, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        position = 0
        while self.count is None or position < self.count:
            yield position % 4
            position += 1


@pytest.mark.parametrize(('count', 'epochs'), [(None, [0]), (4, [0, 1, 2])])
def test_all_views_are_read_in_epochs_or_in_one_endless_pass(
    count: int | None, epochs: list[int]
) -> None:
    sampler = Endless(count)
    loader = DataLoader(
        range(4),
        batch_sampler=BatchSampler(sampler, 2, False),
        collate_fn=lambda batch: dict(inputs=batch),
    )
    found = [batch['inputs'] for batch in batches(loader, 3)]
    assert found == [[0, 1], [2, 3]] * 3
    assert sampler.epochs == epochs


@pytest.mark.parametrize(('times', 'count'), [(1, 12), (2, 16), (40, 160)])
def test_repetitions_are_passes_of_the_fill(times: int, count: int) -> None:
    dataset = BaseDataset(lazy_init=True, serialize_data=False)
    dataset.data_list, dataset._fully_initialized = [{} for _ in range(4)], True
    assert steps_of(RepeatDataset(dataset, times), 3) == count


def test_a_cache_without_room_is_refused() -> None:
    numbers = dict(bytes_each=1000, compute=1.0, read=0.1)
    folder = Path('caches/a')
    Plan('model.teacher.cache', folder, 10, 4, free=6000, **numbers).check()
    plan = Plan('model.teacher.cache', folder, 10, 3, free=6000, **numbers)
    with pytest.raises(ValueError, match='cache.path: .* 7,000 bytes and 6,000 are'):
        plan.check()
