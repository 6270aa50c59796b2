import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    DefaultSampler,
    InfiniteSampler,
    RepeatDataset,
)
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from kdtoolbox.datasets.seeded_sampler import SeededIndex, SeededSampler, load_seeded

SHUFFLED = dict(type='DefaultSampler', shuffle=True)


class Draws(Dataset):
    """A data set of samples with an index and one random number of each library."""

    metainfo: dict = {}

    def __init__(self) -> None:
        self.pipeline = lambda: (
            random.random(),
            np.random.rand(),
            float(torch.rand(())),
        )

    def full_init(self) -> None:
        pass

    def get_data_info(self, index: int) -> dict:
        return dict(width=1 + index % 2, height=1)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple:
        assert type(index) is int
        return index, *self.pipeline()


class Numbers(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(number=number) for number in range(8)]


def draw(sample: dict) -> dict:
    return dict(sample, drawn=random.random())


class Mix:
    def get_indexes(self, dataset: Dataset) -> list[int]:
        return [random.randrange(len(dataset)) for _ in range(3)]

    def __call__(self, sample: dict) -> dict:
        return dict(drawn=np.random.rand() + sample['mix_results'][2]['drawn'])


class Stream(Sampler):
    """An endless sampler with `skip`, as InfiniteSampler may have."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.size, self.start = len(dataset), 0

    def skip(self, num_samples: int) -> None:
        self.start = num_samples

    def __iter__(self) -> Iterator[int]:
        position = self.start
        while True:
            yield position * 3 % self.size
            position += 1

    def __len__(self) -> int:
        return self.size


class Frames(Stream):
    def __iter__(self) -> Iterator[Any]:
        yield (0, 1)
        yield np.int64(2)


def build(
    sampler: dict = SHUFFLED,
    dataset: Any = None,
    seed: int | None = 3,
    views: int | None = None,
) -> Any:
    dataset = Draws() if dataset is None else dataset
    config = dict(type='kdtoolbox.SeededSampler', sampler=sampler, views=views)
    return DATA_SAMPLERS.build(config, default_args=dict(dataset=dataset, seed=seed))


def epoch_of(sampler: SeededSampler, epoch: int, **options: Any) -> list:
    sampler.set_epoch(epoch)
    loader = DataLoader(sampler.dataset, 3, sampler=sampler, collate_fn=list, **options)
    return [sample for batch in loader for sample in batch]


def test_it_yields_the_indices_of_the_wrapped_sampler() -> None:
    for config, kind in (
        (SHUFFLED, DefaultSampler),
        (dict(type='InfiniteSampler'), InfiniteSampler),
    ):
        dataset = Draws()
        plain, sampler = kind(dataset, seed=3), build(config, dataset)
        assert sampler.dataset is dataset
        assert len(sampler) == len(plain)
        assert hasattr(sampler, 'skip') == hasattr(plain, 'skip')
        assert isinstance(sampler, Sampler)
        for epoch in (0, 4):
            plain.set_epoch(epoch)
            sampler.set_epoch(epoch)
            pairs = zip(plain, sampler, range(8), strict=False)
            assert all(index == expected for expected, index, _ in pairs)


def test_random_augmentation_does_not_depend_on_the_number_of_workers() -> None:
    plans = [dict(), dict(num_workers=1), dict(num_workers=2, persistent_workers=True)]
    runs = [[epoch_of(build(), epoch, **plan) for epoch in (0, 1)] for plan in plans]
    assert runs[0] == runs[1] == runs[2]
    first, second = runs[0]
    drawn = {draw for sample in first + second for draw in sample[1:]}
    assert len(drawn) == 3 * 16
    # An epoch does not depend on the ones before it.
    assert epoch_of(build(), 1) == second
    assert epoch_of(build(seed=4), 0) != first


def test_loading_does_not_change_the_random_state_of_the_process() -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(2).tolist()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    load_seeded(Draws(), list(build()))
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == expected


def test_a_failing_sample_does_not_change_the_random_state() -> None:
    def fail() -> None:
        raise ValueError(f'no image {random.random()}')

    dataset = Draws()
    dataset.pipeline = fail
    random.seed(0)
    state = random.getstate()
    with pytest.raises(ValueError, match='no image'):
        load_seeded(dataset, list(build(dataset=dataset)))
    assert random.getstate() == state


def test_skipped_samples_change_neither_indices_nor_seeds_of_the_rest() -> None:
    config = dict(type=Stream)
    whole, skipped = build(config), build(config)
    assert not hasattr(build(), 'skip')
    skipped.skip(5)
    expected = [
        (int(index), index.place) for index, _ in zip(whole, range(9), strict=False)
    ]
    rest = [
        (int(index), index.place) for index, _ in zip(skipped, range(4), strict=False)
    ]
    assert rest == expected[5:]
    assert len({place for _, place in expected}) == 9


def test_processes_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first = epoch_of(build(), 0)
    monkeypatch.setattr('kdtoolbox.datasets.seeded_sampler.get_rank', lambda: 1)
    second = epoch_of(build(), 0)
    assert [sample[0] for sample in first] == [sample[0] for sample in second]
    assert not {s[1] for s in first} & {s[1] for s in second}


def test_items_that_are_not_integers_pass_unchanged() -> None:
    first, second = build(dict(type=Frames))
    assert first == (0, 1)
    assert type(first) is tuple
    assert second == 2
    assert second.place == (3, 0, 0, 1)


def test_a_missing_seed_is_drawn() -> None:
    np.random.seed(5)
    first = list(build(seed=None))
    np.random.seed(5)
    again = build(seed=None)
    assert first == list(again)
    assert again.sampler.seed == again.seed
    assert build(dict(SHUFFLED, seed=7)).sampler.seed == 7


def test_batch_samplers_can_wrap_it() -> None:
    from mmdet.datasets.samplers import AspectRatioBatchSampler

    sampler = build()
    for batches in (
        BatchSampler(sampler, 2, False),
        AspectRatioBatchSampler(sampler, 2),
    ):
        loader = DataLoader(sampler.dataset, batch_sampler=batches, collate_fn=list)
        assert sorted(sample for batch in loader for sample in batch) == sorted(
            epoch_of(build(), 0)
        )


def test_a_changed_pipeline_is_used() -> None:
    sampler = build()
    before = epoch_of(sampler, 0)
    pipeline = sampler.dataset.pipeline
    sampler.dataset.pipeline = lambda: pipeline()[:1]
    assert epoch_of(sampler, 0) == [sample[:2] for sample in before]


def test_wrapped_data_sets_do_not_depend_on_the_workers() -> None:
    from mmdet.datasets import MultiImageMixDataset

    part = Numbers(pipeline=[draw])
    wrapped = [
        ConcatDataset([part, part]),
        RepeatDataset(part, 2),
        MultiImageMixDataset(part, [dict(type=Mix)]),
    ]
    for dataset in wrapped:
        samples = epoch_of(build(dataset=dataset), 0)
        draws = {draw for sample in samples for draw in sample.values()}
        assert len(draws) >= len(dataset) == len(samples)
        assert samples == epoch_of(build(dataset=dataset), 0, num_workers=1)


def test_data_set_and_indices_can_be_pickled_for_spawned_workers() -> None:
    sampler = build()
    del sampler.dataset.pipeline
    sampler.dataset.pipeline = random.random
    indices = list(sampler)
    dataset, copied = pickle.loads(pickle.dumps((sampler.dataset, indices)))
    assert dataset.__getitems__.args[0] is dataset
    assert all(type(index) is SeededIndex for index in copied)
    dataset.pipeline = sampler.dataset.pipeline = lambda: [random.random()]
    assert dataset.__getitems__(copied) == sampler.dataset.__getitems__(indices)


def viewed(sampler: SeededSampler, count: int) -> list[tuple]:
    """Return the first samples and sort each pass of eight."""
    drawn = zip(range(count), sampler, strict=False)
    samples = load_seeded(sampler.dataset, [item for _, item in drawn])
    return sum((sorted(samples[i : i + 8]) for i in range(0, count, 8)), [])


def test_views_repeat_in_any_order_with_any_seed() -> None:
    sampler = build(views=3)
    epochs = [sorted(epoch_of(sampler, epoch)) for epoch in range(7)]
    assert epochs[:3] == epochs[3:6]
    assert epochs[6] == epochs[0]
    assert len({sample[1] for epoch in epochs[:3] for sample in epoch}) == 3 * 8
    others = [
        build(views=3, seed=9),
        build(views=3, seed=None),
        build(dict(type='DefaultSampler', shuffle=False), views=3),
    ]
    for other in others:
        assert sorted(epoch_of(other, 4, num_workers=0)) == epochs[1]
    assert sorted(epoch_of(build(views=3), 2, num_workers=2)) == epochs[2]


def test_each_repetition_of_a_data_set_is_a_pass() -> None:
    numbers = Numbers(pipeline=[draw])
    for times, views in ((3, 2), (2, 4)):
        sampler = build(dataset=RepeatDataset(numbers, times), views=views)
        drawn: dict[int, list] = {number: [] for number in range(8)}
        for epoch in range(views):
            for sample in epoch_of(sampler, epoch):
                drawn[sample['number']].append(sample['drawn'])
        assert all(len({*some}) == views for some in drawn.values())
        assert all(len(some) == views * times for some in drawn.values())


def test_a_sampler_without_end_takes_a_view_for_each_pass() -> None:
    expected = [sorted(epoch_of(build(views=2), epoch)) for epoch in (0, 1)]
    endless = dict(type='InfiniteSampler')
    assert viewed(build(endless, views=2), 24) == sum(expected, []) + expected[0]
    # A resumed run skips what it has seen.
    resumed = build(endless, views=2)
    if hasattr(resumed, 'skip'):
        resumed.skip(8)
        assert viewed(resumed, 16) == sum(expected[::-1], [])


@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
def test_views_do_not_depend_on_the_number_of_processes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [sorted(epoch_of(build(views=2), epoch)) for epoch in (0, 1)]
    found: list = []
    for rank in range(2):
        module = 'kdtoolbox.datasets.seeded_sampler'
        monkeypatch.setattr(f'{module}.get_rank', lambda: rank)  # noqa: B023
        monkeypatch.setattr(f'{module}.get_world_size', lambda: 2)
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info',
            lambda: (rank, 2),  # noqa: B023
        )
        sampler = build(dict(type=kind), views=2)
        if kind == 'InfiniteSampler':
            drawn = [item for _, item in zip(range(8), sampler, strict=False)]
            samples = load_seeded(sampler.dataset, drawn)
        else:
            samples = [x for epoch in (0, 1) for x in epoch_of(sampler, epoch)]
        found.append(samples)
    passes = [[*found[0][:4], *found[1][:4]], [*found[0][4:], *found[1][4:]]]
    assert [sorted(samples) for samples in passes] == expected


def test_views_of_mixed_images_repeat() -> None:
    from mmdet.datasets import MultiImageMixDataset

    def mixed() -> Any:
        return MultiImageMixDataset(Numbers(pipeline=[draw]), [dict(type=Mix)])

    sampler = build(dataset=mixed(), views=2)
    epochs = [epoch_of(sampler, epoch) for epoch in range(4)]
    draws = [sorted(sample['drawn'] for sample in epoch) for epoch in epochs]
    assert draws[0] == draws[2] != draws[1] == draws[3]
    again = epoch_of(build(dataset=mixed(), views=2, seed=8), 3, num_workers=1)
    assert sorted(sample['drawn'] for sample in again) == draws[1]


def test_views_of_a_mosaic_repeat() -> None:
    from mmdet.datasets import BaseDetDataset, MultiImageMixDataset

    class Pictures(BaseDetDataset):
        def load_data_list(self) -> list[dict]:
            return [dict(instances=[]) for _ in range(4)]

    def paint(info: dict) -> dict:
        image = np.random.randint(0, 255, (8, 8, 3)).astype(np.uint8)
        boxes = np.array([[1, 1, 6, 6]], dtype=np.float32)
        return dict(
            info,
            img=image,
            img_shape=(8, 8),
            gt_bboxes=boxes,
            gt_bboxes_labels=np.zeros(1, dtype=np.int64),
            gt_ignore_flags=np.zeros(1, dtype=bool),
        )

    from mmdet.registry import TRANSFORMS

    boxed = TRANSFORMS.build(dict(type='Mosaic', img_scale=(8, 8), pad_val=0))
    dataset = MultiImageMixDataset(Pictures(pipeline=[paint]), [])
    dataset.pipeline, dataset.pipeline_types = [boxed], ['Mosaic']
    sampler = build(dict(type='DefaultSampler', shuffle=False), dataset, views=2)
    epochs = [
        np.stack([sample['img'] for sample in epoch_of(sampler, epoch)])
        for epoch in range(3)
    ]
    assert (epochs[0] == epochs[2]).all()
    assert (epochs[0] != epochs[1]).any()
