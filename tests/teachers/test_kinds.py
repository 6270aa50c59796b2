"""What every kind of teacher promises: frozen, hidden, normalised, recorded, moved."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtoolbox.distillers import Distiller
from kdtoolbox.registry import TEACHERS
from kdtoolbox.teachers import Teacher, build_teacher
from kdtoolbox.teachers.kinds import build_teachers, named_teachers, without_weights

Toy = SimpleNamespace
KINDS: dict[str, Callable[[Toy], dict[str, Any]]] = {
    'FoundationTeacher': lambda toy: dict(
        type='FoundationTeacher',
        model='torch.nn.Conv2d',
        arguments=dict(in_channels=3, out_channels=4, kernel_size=8, stride=8),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        allow_random=True,
    ),
    'MMEngineTeacher': lambda toy: dict(config=toy.gfl(), allow_random=True),
    'SelfTeacher': lambda toy: dict(type='SelfTeacher'),
}
"""The config of a small teacher of each kind, whose output `neck` or `maps` is maps."""
ALL = pytest.mark.parametrize('kind', KINDS)
PATHS = dict(FoundationTeacher='maps')


def path_of(kind: str) -> str:
    return PATHS.get(kind, 'neck')


def build(toy: Toy, kind: str, **options: Any) -> Distiller:
    """Return a distiller with a teacher of a kind, whose maps have the student's size.

    Its loss compares nothing: what counts here is the teacher.
    """
    recorders = dict(student=dict(fpn='neck'), teacher=dict(fpn=path_of(kind)))
    loss = dict(type='CWDLoss', student='student.fpn', teacher='student.fpn')
    return toy.build_distiller(
        toy.gfl(),
        teacher=KINDS[kind](toy) | options,
        recorders=recorders,
        losses=dict(loss_cwd=loss),
    )


def observed(distiller: Distiller, inputs: Tensor, samples: list) -> list[Tensor]:
    recorders = distiller.recorders['teacher']
    return distiller.teacher.observe(recorders, inputs, samples)['fpn']


def batch(distiller: Distiller, toy: Toy) -> tuple[Tensor, list]:
    data = distiller.data_preprocessor(toy.det_data(), training=True)
    return data['inputs'], data['data_samples']


def test_every_kind_is_tested() -> None:
    TEACHERS.import_from_location()
    assert KINDS.keys() == TEACHERS.module_dict.keys()


@ALL
def test_it_is_frozen_and_hidden(toy: Toy, kind: str) -> None:
    distiller = build(toy, kind)
    plain = toy.build(toy.gfl())
    own = {f'student.{name}' for name in plain.state_dict()}
    assert distiller.state_dict().keys() == own
    assert len([*distiller.parameters()]) == len([*plain.parameters()])
    model = distiller.teacher.model
    assert not any(x.requires_grad for x in model.parameters())
    assert not {*map(id, model.modules())} & {*map(id, distiller.modules())}


@ALL
def test_it_stays_in_evaluation_and_makes_no_graph(toy: Toy, kind: str) -> None:
    distiller = build(toy, kind)
    distiller.teacher.model.train()
    maps = observed(distiller, *batch(distiller, toy))
    assert maps
    assert not any(level.requires_grad for level in maps)
    assert not any(module.training for module in distiller.teacher.model.modules())


@ALL
def test_it_gets_the_images_in_its_own_normalisation(toy: Toy, kind: str) -> None:
    """A student with other statistics makes another batch of the same images."""
    torch.manual_seed(0)
    distiller = build(toy, kind)
    expected = observed(distiller, *batch(distiller, toy))
    other = copy.deepcopy(distiller.data_preprocessor)
    other._channel_conversion = False
    other.mean, other.std = other.mean.flip(0) * 0.9, other.std * 2
    data = other(toy.det_data(), training=True)
    teacher = distiller.teacher
    teacher.take_images_of(other)
    found = teacher.observe(
        distiller.recorders['teacher'], data['inputs'], data['data_samples']
    )['fpn']
    for level, goal in zip(found, expected, strict=True):
        torch.testing.assert_close(level, goal, rtol=1e-4, atol=1e-4)


@ALL
def test_it_moves_with_the_distiller_and_copies_share_it(toy: Toy, kind: str) -> None:
    distiller = build(toy, kind)
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher
    twin.double()
    kinds = [next(x.teacher.model.parameters()).dtype for x in (distiller, twin)]
    assert kinds == [torch.float32, torch.float64]
    inputs, samples = batch(distiller, toy)
    pairs = zip(
        observed(distiller, inputs, samples),
        observed(twin, inputs.double(), samples),
        strict=True,
    )
    for single, double in pairs:
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@ALL
def test_a_wrong_path_is_refused_with_its_neighbours(toy: Toy, kind: str) -> None:
    path = path_of(kind)
    recorders = dict(student=dict(), teacher=dict(fpn=f'{path}x'))
    loss = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
    with pytest.raises(ValueError, match=rf"teacher\.fpn: .* no module '{path}x'"):
        toy.build_distiller(
            toy.gfl(),
            teacher=KINDS[kind](toy),
            recorders=recorders,
            losses=dict(loss_cwd=loss),
        )


@ALL
def test_an_unknown_key_is_refused(toy: Toy, kind: str) -> None:
    with pytest.raises(TypeError, match=r"model\.teacher: \w+ takes no 'chekpoint'"):
        build(toy, kind, chekpoint='a.pth')


@ALL
def test_its_type_leaves_the_normalisation_as_it_is(toy: Toy, kind: str) -> None:
    """A mean of 123.675 rounded to bfloat16 is 123.5."""
    if kind == 'SelfTeacher':
        return
    plain, half = build(toy, kind), build(toy, kind, dtype='bfloat16')
    inputs, samples = batch(plain, toy)
    images = [x.teacher.see(inputs, samples)[0] for x in (plain, half)]
    assert torch.equal(*images)


@ALL
def test_a_misspelt_option_is_named(toy: Toy, kind: str) -> None:
    match = r"takes no 'chanels_last' \(did you mean 'channels_last'\?\)"
    with pytest.raises(TypeError, match=match):
        build(toy, kind, chanels_last=True)


@ALL
def test_a_larger_view_makes_larger_maps(toy: Toy, kind: str) -> None:
    plain, large = build(toy, kind), build(toy, kind, view=dict(scale=2.0))
    inputs, samples = batch(plain, toy)
    before = dict(samples[0].metainfo)
    sizes = [
        [(level.shape[2], level.shape[3]) for level in observed(x, inputs, samples)]
        for x in (plain, large)
    ]
    assert sizes[1] == [(2 * height, 2 * width) for height, width in sizes[0]]
    assert dict(samples[0].metainfo) == before


@ALL
def test_channels_last_changes_no_number(toy: Toy, kind: str) -> None:
    torch.manual_seed(0)
    plain = build(toy, kind)
    torch.manual_seed(0)
    last = build(toy, kind, channels_last=True)
    weights = [x for x in last.teacher.model.parameters() if x.dim() == 4]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in weights)
    pairs = zip(*(observed(x, *batch(x, toy)) for x in (plain, last)), strict=True)
    for level, goal in pairs:
        torch.testing.assert_close(level, goal, rtol=1e-3, atol=1e-3)


def test_channels_last_is_refused_where_it_gives_wrong_features(toy: Toy) -> None:
    teacher = dict(config=toy.faster_rcnn(), allow_random=True, channels_last=True)
    with pytest.raises(ValueError, match=r'channels_last: RoIAlign of mmcv read maps'):
        build_teacher(teacher)


@ALL
def test_half_precision_stays_in_the_teacher(toy: Toy, kind: str) -> None:
    if kind == 'SelfTeacher':
        with pytest.raises(ValueError, match=r'model\.teacher\.dtype: .* round away'):
            build(toy, kind, dtype='bfloat16')
        return
    torch.manual_seed(0)
    plain = build(toy, kind)
    torch.manual_seed(0)
    half = build(toy, kind, dtype='bfloat16')
    weights = {x.dtype for x in half.teacher.model.parameters()}
    assert weights == {torch.bfloat16}
    for level, goal in zip(
        *(observed(x, *batch(x, toy)) for x in (half, plain)), strict=True
    ):
        assert level.dtype == torch.float32
        assert 0 < (level - goal).norm() < 0.1 * goal.norm()
    # The student's own type does not change the teacher's.
    half.double()
    assert {x.dtype for x in half.teacher.model.parameters()} == {torch.bfloat16}


@pytest.mark.e2e
def test_compiled_parts_change_no_number() -> None:
    """Also records inside of a compiled part, and copies of another type."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 1)]
    plain = Teacher(nn.Sequential(*layers))
    compiled = Teacher(copy.deepcopy(plain.model))
    compiled.use(compile=True)
    recorders, images = dict(inner='0.0', last='1'), torch.randn(2, 3, 9, 9)
    for teacher, expected in ((compiled, plain), (compiled, plain)):
        found = teacher.observe(recorders, images, [])
        goal = expected.observe(recorders, images, [])
        for name in recorders:
            torch.testing.assert_close(found[name], goal[name])
    for teacher in (compiled, compiled.moved(torch.Tensor.double)):
        assert all(part._compiled_call_impl for part in teacher.model.children())


@ALL
def test_the_same_teacher_without_its_files(toy: Toy, kind: str) -> None:
    config = KINDS[kind](toy)
    for key in ('allow_random',):
        config.pop(key, None)
    random = without_weights(dict(config, checkpoint='gone.pth'))
    assert isinstance(build_teacher(random, student=toy.build(toy.gfl())), Teacher)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'SelfTeacher'\?"):
        build_teacher(dict(type='SelfTeachr'))


def test_a_config_that_is_no_dict_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write teacher=dict\(config='gfl\.py'"):
        build_teacher('gfl.py')


def test_an_own_class_is_a_kind_too() -> None:
    class Fixed(Teacher):
        def __init__(self, name: str, where: str) -> None:
            super().__init__(nn.Sequential(nn.Conv2d(3, 4, 1)), name, where)

    teacher = build_teacher(dict(type=Fixed))
    found = teacher.observe({'maps': '0'}, torch.zeros(1, 3, 2, 2), [])
    assert found['maps'][0].shape == (1, 4, 2, 2)


def test_one_teacher_or_several_but_not_both(toy: Toy) -> None:
    one = KINDS['MMEngineTeacher'](toy)
    with pytest.raises(ValueError, match='`teacher` is for one teacher'):
        named_teachers(one, dict(a=one))


@pytest.mark.parametrize('name', ['student', 'a.b', '1st', ''])
def test_a_name_that_cannot_begin_a_wire_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match='cannot be the name of a model'):
        build_teachers(teachers={name: dict(config='x.py')})


@pytest.mark.parametrize('scale', [0, -1, 'large', True, float('inf'), float('nan')])
def test_a_view_without_a_size_is_refused(toy: Toy, scale: Any) -> None:
    with pytest.raises(ValueError, match=r'model\.teacher\.view\.scale: expected'):
        build(toy, 'MMEngineTeacher', view=dict(scale=scale))


@pytest.mark.parametrize(
    ('view', 'message'),
    [
        (1.5, r'expected a dict, got 1\.5; write view=dict\(scale=1\.5\)'),
        (dict(scal=1.5), r"View takes no 'scal' \(did you mean 'scale'\?\)"),
        (dict(), "View needs 'scale'"),
        (dict(scale=2, divisor=3), "View takes no 'divisor'"),
    ],
)
def test_a_view_of_other_keys_is_refused(toy: Toy, view: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf'^model\.teacher\.view: {message}'):
        build(toy, 'MMEngineTeacher', view=view)


@pytest.mark.parametrize('key', ['channels_last', 'compile'])
def test_a_switch_is_a_bool(toy: Toy, key: str) -> None:
    with pytest.raises(ValueError, match=rf'teacher\.{key}: .* write {key}=True'):
        build(toy, 'MMEngineTeacher', **{key: 'reduce-overhead'})


def test_an_unknown_number_type_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"teacher\.dtype: expected 'bfloat16'"):
        build(toy, 'MMEngineTeacher', dtype='float8')


def test_the_samples_of_a_view_have_its_sizes(toy: Toy) -> None:
    distiller = build(toy, 'MMEngineTeacher', view=dict(scale=1.5))
    inputs, samples = batch(distiller, toy)
    # Transforms leave None where they have nothing to say.
    samples[0].set_metainfo(dict(scale_factor=None))
    images, seen = distiller.teacher.see(inputs, samples)
    # 64 * 1.5 is a multiple of the 32 pixels of the preprocessor.
    assert images.shape[-2:] == (96, 96)
    assert seen[1].img_shape == (72, 96)
    assert seen[1].batch_input_shape == (96, 96)
    assert seen[1].scale_factor == (1.5, 1.5)
    assert 'gt_instances' not in seen[1]
