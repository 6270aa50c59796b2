"""A cached teacher gives the records of the teacher itself, or computes them."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdtoolbox.recorders import Records
from kdtoolbox.teachers import MMEngineTeacher, SelfTeacher, Teacher, build_teacher
from kdtoolbox.teachers.identity import Identity
from kdtoolbox.teachers.record_cache import RecordCache, names_of, uncached

Toy = SimpleNamespace
SOME = Identity('digest', {'teacher': 'a convolution'})
ROUNDING = {'float16': 2**-11, 'bfloat16': 2**-8, 'float32': 0.0}


class Counted:
    """A function of images, as a teacher, that counts the images it gets."""

    def __init__(self, make: Callable[[Tensor], Records] | None = None) -> None:
        self.make = make or (
            lambda x: dict(maps=[x * 3.1, x.mean((2, 3))], index=[x[:, 0, 0].long()])
        )
        self.seen: list[int] = []

    def __call__(self, images: Tensor, samples: Sequence) -> Records:
        self.seen.append(len(images))
        return self.make(images)

    @property
    def count(self) -> int:
        return sum(self.seen)


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 6, generator=torch.Generator().manual_seed(seed))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob('*.safetensors'))


def same(left: Records, right: Records) -> bool:
    assert left.keys() == right.keys()
    return all(
        a.dtype == b.dtype and torch.equal(a, b)
        for name in left
        for a, b in zip(left[name], right[name], strict=True)
    )


@pytest.mark.parametrize('dtype', ROUNDING)
def test_records_are_those_of_the_teacher_up_to_rounding(
    dtype: str, tmp_path: Path
) -> None:
    run, batch = Counted(), images()
    cache = RecordCache(str(tmp_path), views=1, dtype=dtype)
    first = cache.observe(run, batch, [], SOME)
    expected = run.make(batch)
    for name, levels in expected.items():
        for got, wanted in zip(first[name], levels, strict=True):
            assert got.dtype == wanted.dtype
            assert got.is_contiguous()
            assert torch.allclose(got, wanted, rtol=ROUNDING[dtype], atol=1e-7)
    assert (dtype == 'float32') == same(first, expected)
    # Later epochs and other processes get the numbers of the first one.
    run.seen.clear()
    again = RecordCache(str(tmp_path), views=1, dtype=dtype)
    order = [2, 0, 3, 1]
    later = again.observe(run, batch[order], [], SOME)
    assert run.seen == []
    assert (again.read, again.computed) == (4, 0)
    assert same(later, {k: [x[order] for x in v] for k, v in first.items()})


def test_samples_may_lack_the_size_of_the_image(tmp_path: Path) -> None:
    # As those of `PackDetInputs(meta_keys=('img_path',))`, which no model can read.
    run, batch = Counted(), images(2)
    cache = RecordCache(str(tmp_path), views=1)
    for _ in range(2):
        cache.observe(run, batch, [SimpleNamespace(img_path='a')] * 2, SOME)
    assert (cache.computed, cache.read) == (2, 2)


def test_only_missing_images_are_computed(tmp_path: Path) -> None:
    run, batch = Counted(), images(6)
    cache = RecordCache(str(tmp_path), views=1)
    samples = [SimpleNamespace(img_shape=(8, 6), index=i) for i in range(6)]
    known = cache.observe(run, batch[::2], samples[::2], SOME)
    run.seen.clear()
    asked: list = []
    mixed = cache.observe(
        lambda x, some: asked.extend(some) or run(x, some), batch, samples, SOME
    )
    assert run.seen == [3]
    assert [sample.index for sample in asked] == [1, 3, 5]
    assert (cache.read, cache.computed) == (3, 6)
    assert same(known, {k: [x[::2] for x in v] for k, v in mixed.items()})
    assert len(entries(tmp_path)) == 6
    # A model may read the size within the padding.
    samples[0].img_shape = (7, 6)
    cache.observe(run, batch[:1], samples[:1], SOME)
    assert run.seen == [3, 1]


def test_images_of_several_sizes_have_entries(tmp_path: Path) -> None:
    run, cache = Counted(), RecordCache(str(tmp_path), views=1)
    sizes = [images(2), images(2)[..., :4], images(2)]
    found = [cache.observe(run, batch, [], SOME) for batch in sizes]
    assert run.count == 4 + 1
    assert same(found[0], found[2])


def test_another_teacher_has_another_folder(tmp_path: Path) -> None:
    run, cache = Counted(), RecordCache(str(tmp_path), views=1)
    cache.observe(run, images(), [], SOME)
    cache.observe(run, images(), [], Identity('other', {}))
    assert len(entries(tmp_path)) == 8
    note = json.loads((cache.folder(SOME) / 'cache.json').read_text())
    assert note == {'teacher': 'a convolution', 'stored_as': 'torch.float16'}


@pytest.mark.parametrize('damage', ['cut', 'empty', 'zeros', 'longer'])
def test_a_damaged_entry_is_computed_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, cache = Counted(), RecordCache(str(tmp_path), views=1)
    first = cache.observe(run, images(), [], SOME)
    paths = entries(tmp_path)
    content = paths[1].read_bytes()
    damaged = dict(
        cut=content[:-9], empty=b'', zeros=bytes(len(content)), longer=content + b'0'
    )
    paths[1].write_bytes(damaged[damage])
    for other in (cache, RecordCache(str(tmp_path), views=1)):
        run.seen.clear()
        assert same(other.observe(run, images(), [], SOME), first)
        assert run.seen == ([1] if other is cache else [])
    assert paths[1].read_bytes() == content
    # The first file of a batch tells the layout of the others.
    for path in paths:
        path.write_bytes(damaged[damage])
    assert same(RecordCache(str(tmp_path), 1).observe(run, images(), [], SOME), first)


def test_records_without_the_batch_first_are_refused(tmp_path: Path) -> None:
    for make in (
        lambda x: dict(states=[x.transpose(0, 1)]),
        lambda x: dict(states=[x.mean()]),
        # Three queries of three images look like the batch.
        lambda x: dict(states=[x.new_zeros(3, len(x), 2)]),
    ):
        cache = RecordCache(str(tmp_path), views=1, where='model.teachers.a.cache')
        message = r"model.teachers.a.cache: the record 'states' of .*remove"
        for count in (3, 2):
            with pytest.raises(ValueError, match=message):
                cache.observe(Counted(make), images(count), [], SOME)
    assert entries(tmp_path) == []


def test_values_beyond_float16_name_the_cure(tmp_path: Path) -> None:
    run = Counted(lambda x: dict(maps=[x * 1e6]))
    cache = RecordCache(str(tmp_path), views=1)
    with pytest.raises(ValueError, match=r"contains .*e\+06, .*cache.dtype='bfloat16'"):
        cache.observe(run, images(), [], SOME)
    assert entries(tmp_path) == []
    RecordCache(str(tmp_path), 1, 'bfloat16').observe(run, images(), [], SOME)
    assert len(entries(tmp_path)) == 4


def test_values_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    run = Counted(lambda x: dict(maps=[x * float('inf')]))
    found = RecordCache(str(tmp_path), views=1).observe(run, images(), [], SOME)
    assert not found['maps'][0].isfinite().any()
    assert entries(tmp_path) == []


def test_a_full_disk_names_the_folder_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    run, cache = Counted(), RecordCache(str(tmp_path), views=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='cache.*No space.*--resume') as caught:
            cache.observe(run, images(), [], SOME)
    assert caught.value.errno == errno.ENOSPC
    assert entries(tmp_path) == []
    assert not list(tmp_path.rglob('*.partial'))
    cache.observe(run, images(), [], SOME)
    assert len(entries(tmp_path)) == 4


def test_made_up_images_are_not_stored(tmp_path: Path) -> None:
    run, cache = Counted(), RecordCache(str(tmp_path), views=1)
    with uncached():
        cache.observe(run, images(), [], SOME)
    assert not list(tmp_path.iterdir())
    assert (run.count, cache.computed) == (4, 0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(path=''), 'cache.path: expected a folder'),
        (dict(views=0), 'cache.views: .*got 0; write cache=dict'),
        (dict(views=True), 'cache.views'),
        (dict(dtype='int8'), r"cache.dtype: expected one of .*got 'int8'"),
    ],
)
def test_other_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordCache(**dict(dict(path='a', views=1), **arguments))


def cached(toy: Toy, path: Path, config: Any = None, **options: Any) -> Teacher:
    torch.manual_seed(0)
    teacher = dict(config=config or toy.gfl(), allow_random=True)
    cache = dict(path=str(path), views=1)
    return build_teacher(dict(teacher, cache=cache, **options))


RECORDERS = dict(fpn='neck', cls='bbox_head.gfl_cls')


def test_a_cached_teacher_gives_its_own_records(toy: Toy, tmp_path: Path) -> None:
    plain = cached(toy, tmp_path)
    plain.cache = None
    batch = torch.randn(2, 3, 64, 64)
    expected = plain.observe(RECORDERS, batch, [])
    teacher = cached(toy, tmp_path)
    first = teacher.observe(RECORDERS, batch, [])
    assert [len(first[name]) for name in first] == [3, 3]
    for name in expected:
        for got, wanted in zip(first[name], expected[name], strict=True):
            assert torch.allclose(got, wanted, rtol=2**-11, atol=2**-24)
    # Nothing of the model runs any more.
    again = cached(toy, tmp_path)
    again.model.register_forward_pre_hook(lambda *_: pytest.fail('it ran'))
    again.model.backbone.register_forward_pre_hook(lambda *_: pytest.fail('it ran'))
    assert same(again.observe(RECORDERS, batch, []), first)
    assert load_file(entries(tmp_path)[0])['fpn/0'].dtype == torch.float16


def test_whatever_changes_the_records_changes_the_folder(
    toy: Toy, tmp_path: Path
) -> None:
    batch = torch.randn(2, 3, 64, 64)
    device = batch.device

    def folder(teacher: Teacher, recorders: dict = RECORDERS) -> str:
        return teacher.identity(recorders, device).digest

    teacher = cached(toy, tmp_path)
    base = folder(teacher)
    assert folder(cached(toy, tmp_path / 'elsewhere')) == base
    config = toy.gfl()
    config['model']['neck']['add_extra_convs'] = 'on_output'
    config['model']['neck']['num_outs'] = 3
    others = [
        folder(teacher, dict(fpn='neck')),
        folder(cached(toy, tmp_path, config)),
        folder(cached(toy, tmp_path, dtype='bfloat16')),
        folder(cached(toy, tmp_path, view=dict(scale=2.0))),
    ]
    with torch.autocast('cpu', torch.bfloat16):
        others.append(folder(teacher))
    changed = cached(toy, tmp_path)
    changed.model.backbone.bn1.running_mean.add_(1)
    others.append(folder(changed))
    renormalised = cached(toy, tmp_path)
    student = toy.build(toy.gfl())
    student.data_preprocessor.mean += 1
    renormalised.take_images_of(student.data_preprocessor)
    others.append(folder(renormalised))
    others.append(folder(teacher.moved(lambda x: x.double())))
    assert len({base, *others}) == 1 + len(others)


def test_teachers_that_change_cannot_be_cached(tmp_path: Path) -> None:
    student = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match='cache: the weights .*remove `cache`'):
        SelfTeacher(student).use(cache=dict(path=str(tmp_path), views=1))


def test_unknown_keys_of_a_cache_are_refused(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.gfl(), allow_random=True)
    with pytest.raises(TypeError, match=r"takes no 'folder'.*needs 'path'"):
        teacher.use(cache=dict(folder='a', views=1))
    with pytest.raises(ValueError, match='expected a dict'):
        teacher.use(cache='caches/a')


def test_a_flipped_map_is_not_the_map_of_the_flipped_image(toy: Toy) -> None:
    """The reason why stored maps are not augmented: the error is large."""
    teacher = cached(toy, Path('unused'))
    teacher.cache = None
    batch = torch.randn(2, 3, 64, 64)
    for recorder in ('backbone', 'neck'):
        maps = teacher.observe(dict(maps=recorder), batch, [])['maps']
        flipped = teacher.observe(dict(maps=recorder), batch.flip(3), [])['maps']
        for one, other in zip(maps, flipped, strict=True):
            error = (one.flip(3) - other).norm() / other.norm()
            assert error > 0.05


@pytest.mark.parametrize('fixed', [False, True])
def test_only_a_fixed_padded_size_makes_entries_independent_of_neighbours(
    toy: Toy, fixed: bool
) -> None:
    from mmdet.models.data_preprocessors import DetDataPreprocessor
    from mmdet.structures import DetDataSample

    pad = dict(type='mmdet.BatchFixedSizePad', size=(96, 96), pad_mask=False)
    preprocessor = DetDataPreprocessor(
        [0.0], [1.0], pad_size_divisor=32, batch_augments=[pad] if fixed else None
    )
    sides = [64, 40, 90]
    images = [torch.randint(0, 255, (3, 48, side)).byte() for side in sides]

    def name(*order: int) -> str:
        batch = dict(
            inputs=[images[index] for index in order],
            data_samples=[
                DetDataSample(metainfo=dict(img_shape=(48, sides[index])))
                for index in order
            ],
        )
        data = preprocessor(batch, training=True)
        return names_of(data['inputs'], data['data_samples'])[0]

    assert name(0, 1) == name(0, 0)
    assert (name(0, 1) == name(0, 2)) == fixed
