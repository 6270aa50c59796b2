from types import SimpleNamespace

import pytest

from kdtoolbox.recipes.making import published_weights
from kdtoolbox.recipes.sides import Side
from kdtoolbox.recipes.templates import (
    closest_template,
    kinds_of,
    method_names,
    templates_of,
)

Toy = SimpleNamespace


def pair(config: dict) -> tuple[Side, Side]:
    return Side('student', config), Side('teacher', config)


def test_methods_are_the_folders_with_recipes() -> None:
    names = method_names()
    assert {'cwd', 'fgd', 'kd_detr', 'vitkd'} <= set(names)
    assert not {'digits', 'pretrain', 'students'} & set(names)


@pytest.mark.parametrize(
    ('method', 'families'),
    [
        ('crosskd', {'dense'}),
        ('response', {'two_stage'}),
        ('kd_detr', {'detr'}),
        ('bpkd', {'segmentor'}),
        ('mask_queries', {'mask'}),
        ('ifvd', {'segmentor'}),
        ('fgfi', {'dense'}),
    ],
)
def test_families_that_a_method_fits(method: str, families: set[str]) -> None:
    assert set().union(*(t.families() for t in templates_of(method))) == families


def test_kinds_of_rows_and_maps() -> None:
    rows = dict(type='KDLoss', student='student.roi_cls', teacher='teacher.roi_cls')
    assert kinds_of(rows)['student'] == 'RoI logits'
    maps = dict(type='KDLoss', student='student.logits', teacher='teacher.logits')
    assert kinds_of(maps)['student'] == 'class logits map'


def test_the_most_similar_recipe_is_chosen(toy: Toy) -> None:
    assert '_gfl_r101_gfl' in closest_template('cwd', *pair(toy.gfl())).path.stem
    two_stage = closest_template('mgd', *pair(toy.faster_rcnn()))
    assert '_frcnn_r50_' in two_stage.path.stem
    assert two_stage.model.losses.loss_mgd.loss_weight == 5e-7


def test_the_usual_place_of_a_method_is_preferred(toy: Toy) -> None:
    for config, place in ((toy.gfl(), 'fpn'), (toy.segmentor(), 'logits')):
        recorders = closest_template('cwd', *pair(config)).model.recorders
        assert list(recorders.student) == [place]


def test_a_method_for_other_models_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match='response fits two-stage detectors; the stud'):
        closest_template('response', *pair(toy.gfl()))
    with pytest.raises(ValueError, match='did you mean fgd'):
        closest_template('fgdd', *pair(toy.gfl()))


def test_published_weights_are_found() -> None:
    found = published_weights(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    )
    assert found is not None
    assert found.endswith('.pth')
    assert published_weights('/my/own.py') is None
