from types import SimpleNamespace
from typing import Any

import pytest
from built_sides import side

from kdtoolbox.recipes.places import places
from kdtoolbox.recipes.sides import family_of

Toy = SimpleNamespace


def place(path: Any, student: dict, teacher: dict, at: str | None = None) -> tuple:
    pair = side('student', student), side('teacher', teacher)
    return places((path, path), *pair, at)


def test_families(toy: Toy) -> None:
    kinds = dict(
        dense=toy.gfl(), two_stage=toy.faster_rcnn(), segmentor=toy.segmentor()
    )
    for family, config in kinds.items():
        assert side('student', config).family == family
    assert family_of(dict(encoder={}, decoder={}, bbox_head={})) == 'detr'
    assert family_of(dict(decode_head=dict(type='Mask2FormerHead'))) == 'mask'
    assert family_of(dict(mask_head={})) == 'other'


def test_a_path_of_both_models_stays(toy: Toy) -> None:
    assert place('neck.fpn_convs.*', toy.gfl(), toy.gfl()) == ('neck.fpn_convs.*',) * 2


def test_levels_of_one_stride_correspond(toy: Toy) -> None:
    deeper = toy.gfl()
    deeper['model']['neck'].update(start_level=2, add_extra_convs='on_output')
    head = deeper['model']['bbox_head']
    head['anchor_generator']['strides'] = [16, 32, 64]
    found = place('neck', toy.gfl(), deeper)
    student, teacher = side('student', toy.gfl()), side('teacher', deeper)
    strides = [
        [one.outline.stride(value.shape) for value in one.values(path)]
        for one, path in zip((student, teacher), found, strict=True)
    ]
    assert strides == [[16, 32], [16, 32]]


def test_stages_of_one_stride_correspond_once(toy: Toy) -> None:
    # Strides of 8 thrice, and once.
    dilated, plain = toy.segmentor(), toy.segmentor()
    dilated['model']['backbone'].update(strides=(1, 2, 1, 1), out_indices=(1, 2, 3))
    dilated['model']['decode_head']['in_index'] = 2
    dilated['model']['auxiliary_head']['in_index'] = 1
    found = place('backbone', dilated, plain, at='backbone')
    assert found == ('backbone.layer2', 'backbone.layer2')


def test_frozen_stages_are_left_out(toy: Toy) -> None:
    frozen = toy.gfl()
    frozen['model']['backbone']['frozen_stages'] = 1
    own, other = place('backbone', frozen, toy.gfl())
    assert own == other != 'backbone'
    values = side('student', frozen).values(own)
    assert values
    assert all(value.trains for value in values)


def test_the_layers_of_dense_heads(toy: Toy) -> None:
    assert place('bbox_head.retina_cls', toy.gfl(), toy.gfl()) == (
        'bbox_head.gfl_cls',
        'bbox_head.gfl_cls',
    )
    assert place('bbox_head.retina_reg', toy.gfl(), toy.gfl())[0] == (
        'bbox_head.scales.*'
    )


def test_the_features_before_a_classifier(toy: Toy) -> None:
    own, other = place('decode_head.bottleneck', toy.segmentor(), toy.segmentor())
    one = side('student', toy.segmentor())
    [value] = one.values(own)
    assert value.number == one.outline.layers['decode_head.dropout'].inputs[0].number
    assert own == other
    assert place('decode_head.conv_seg', toy.segmentor(), toy.segmentor())[0] == (
        'decode_head.conv_seg'
    )


@pytest.mark.parametrize(
    ('at', 'expected'),
    [
        ('neck', 'neck'),
        ('head', 'bbox_head.cls_convs.0'),
        ('neck.fpn_convs.0', 'neck.fpn_convs.0'),
    ],
)
def test_at(toy: Toy, at: str, expected: str) -> None:
    assert place('neck', toy.gfl(), toy.gfl(), at) == (expected, expected)


def test_at_two_paths(toy: Toy) -> None:
    at = 'neck.fpn_convs.0,backbone'
    assert place('neck', toy.gfl(), toy.gfl(), at) == tuple(at.split(','))


def test_refusals(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r'--at on the student.*neck\.fpn_convs'):
        place('neck', toy.gfl(), toy.gfl(), 'neck.fpn_conv')
    with pytest.raises(ValueError, match="a module inside it, such as 'neck.fpn_convs"):
        place('neck', toy.gfl(), toy.gfl(), 'neck.fpn_convs')
    with pytest.raises(ValueError, match='no layer like .*conv_seg'):
        place('auxiliary_head.conv_seg', toy.gfl(), toy.gfl())
