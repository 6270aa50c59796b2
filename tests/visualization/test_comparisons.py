from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdtoolbox.distillers.observing import Step
from kdtoolbox.losses import CWDLoss
from kdtoolbox.visualization import KINDS, draw_step
from kdtoolbox.visualization.attention import draw_attention
from kdtoolbox.visualization.comparisons import (
    CHANNELS,
    draw_channels,
    draw_features,
    largest_divergences,
    levels_of,
)
from kdtoolbox.visualization.masks import draw_masks, masks_of
from kdtoolbox.visualization.scenes import Scene, covered_by, map_of, scenes_of

Toy = SimpleNamespace
PAIR = dict(student='student.fpn', teacher='teacher.fpn')


def observed(toy: Toy, model: Any, data: dict | None = None) -> Step:
    steps: list[Step] = []
    model.observers.append(steps.append)
    batch = model.data_preprocessor(data or toy.det_data(), training=True)
    model(**batch, mode='loss')
    model.observers.clear()
    [step] = steps
    return step


def panels(picture: Any) -> list[np.ndarray]:
    return [image for _, image in picture.rows[0]]


def test_images_are_those_that_were_loaded(toy: Toy) -> None:
    model, data = toy.build_distiller(toy.gfl()), toy.det_data()
    scenes = scenes_of(observed(toy, model, data), model.data_preprocessor, most=2)
    for scene, image in zip(scenes, toy.det_data()['inputs'], strict=True):
        # Loaded as BGR; the second image is padded.
        expected = image.flip(0).permute(1, 2, 0).numpy()
        assert scene.image.shape == expected.shape
        assert np.array_equal(scene.image, expected)
        assert scene.padded == (64, 64)


def test_equal_maps_have_an_empty_difference_on_one_scale(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    step = observed(toy, model)
    step.wires['teacher.fpn'] = step.wires['student.fpn']
    [scene, _] = scenes_of(step, model.data_preprocessor, most=2)
    grey = scene._replace(image=np.full_like(scene.image, 100))
    picture = draw_features(model, step, 'loss_cwd', grey)
    student, teacher, difference, _ = panels(picture)
    assert len(picture.rows) == 3
    assert np.array_equal(student, teacher)
    assert not (student == student[0, 0]).all()
    assert (difference == difference[0, 0]).all()
    # Twice the student's values: the one scale makes the student darker.
    step.wires['teacher.fpn'] = [2 * level for level in step.wires['student.fpn']]
    darker, same, _, _ = panels(draw_features(model, step, 'loss_cwd', grey))
    assert np.array_equal(same, student)
    assert darker.sum() < student.sum()


def test_the_channels_are_those_with_the_largest_divergence(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    step = observed(toy, model)
    scene = scenes_of(step, model.data_preprocessor, most=2)[1]
    levels = levels_of(model, step, 'loss_cwd', scene)
    every = largest_divergences(levels, tau=1.0, count=99)
    assert len(every) == 3 * 8
    loss = CWDLoss()
    for level in levels:
        values = [value for found, _, value in every if found is level]
        expected = loss(level.student[None], level.teacher[None]).item()
        assert np.mean(values) == pytest.approx(expected, rel=1e-4)
    assert [value for *_, value in every] == sorted(v for *_, v in every)[::-1]
    picture = draw_channels(model, step, 'loss_cwd', scene)
    assert len(picture.rows) == CHANNELS
    level, channel, _ = every[0]
    title = picture.rows[0][0][0]
    assert title == f'student, level {level.number}, channel {channel}'


def test_maps_that_reach_beyond_the_image_keep_their_stride() -> None:
    scene = Scene(0, np.zeros((832, 1088, 3), np.uint8), None, (832, 1088))
    assert covered_by((7, 9), scene) == (7 * 128, 9 * 128)
    # Pooled to a fixed size: the cells share the image.
    assert covered_by((6, 6), scene) == (832, 1088)


def test_maps_of_other_batches_are_not_drawn(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    scene = scenes_of(observed(toy, model), model.data_preprocessor, most=1)[0]
    assert map_of(torch.zeros(16, 8, 7, 7), scene, batch=2) is None
    assert map_of(torch.zeros(2, 5, 8), scene, batch=2).shape == (8, 2, 2)
    assert map_of(torch.zeros(2, 7, 8), scene, batch=2) is None
    assert map_of(torch.zeros(2, 8), scene, batch=2) is None


LOSSES = {
    'FGDLoss': (dict(channels=8, num_levels=3), ['foreground', 'background']),
    'FGFILoss': ({}, ['imitated']),
    'PGDClsLoss': (dict(level_weights=[1.0] * 3), ['foreground', 'background']),
    'PGDRegLoss': ({}, ['foreground']),
}


@pytest.mark.parametrize('kind', LOSSES)
def test_masks_are_those_of_the_loss(toy: Toy, kind: str) -> None:
    arguments, names = LOSSES[kind]
    loss = dict(type=kind, **PAIR, **arguments)
    recorders = dict(student=dict(fpn='neck'), teacher=dict(fpn='neck'))
    if kind.startswith('PGD'):
        loss |= dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
        heads = dict(cls='bbox_head.gfl_cls', reg='bbox_head.gfl_reg')
        recorders['teacher'] |= heads
    model = toy.build_distiller(
        toy.gfl(), losses=dict(loss_mask=loss), recorders=recorders
    )
    step = observed(toy, model)
    levels = masks_of(model, step, 'loss_mask')
    assert [list(level) for level in levels] == [names] * 3
    sizes = [tuple(maps.shape[-2:]) for maps in step.wires['student.fpn']]
    assert [tuple(level[names[0]].shape[-2:]) for level in levels] == sizes
    finest = levels[0][names[0]][0]
    # The object is at 8 to 40 pixels; the stride is 8.
    assert finest[1:5, 1:5].any()
    assert not finest[6:].any()
    scene = scenes_of(step, model.data_preprocessor, most=1)[0]
    picture = draw_masks(model, step, 'loss_mask', scene, ['a', 'b', 'c'])
    assert len(picture.rows) == 3
    truth, mask = panels(picture)[:2]
    white = (255, 255, 255)
    # The outline of the box, on both panels: 8 pixels at a scale of 4.
    assert (truth[80, 32] == white).all()
    assert (mask[80, 32] == white).all()
    assert mask[80, 100].sum() > mask[-1, -1].sum()


def test_other_losses_have_no_masks(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    assert masks_of(model, observed(toy, model), 'loss_cwd') == []


def test_tokens_are_compared_with_the_central_one(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    step = observed(toy, model)
    scene = scenes_of(step, model.data_preprocessor, most=1)[0]
    assert draw_attention(step, 'fpn', scene) is None
    tokens = torch.eye(16)[None].repeat(2, 1, 1)
    step.wires['student.fpn'], step.wires['teacher.fpn'] = [tokens], [tokens]
    grey = scene._replace(image=np.full_like(scene.image, 100))
    picture = draw_attention(step, 'fpn', grey)
    [student, _, _] = panels(picture)
    bright = student.sum(2) > student[0, 0].sum()
    rows, columns = np.nonzero(bright)
    # Of 4 x 4 cells the one in row 2 and column 2.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        *(128, 191),
        *(128, 191),
    )


def test_a_step_gives_the_pictures_that_were_asked_for(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    step = observed(toy, model)
    names = [list(each) for each in draw_step(model, step, KINDS, {}, images=2)]
    assert names == [['features_loss_cwd', 'channels_loss_cwd']] * 2
    assert draw_step(model, step, ['masks'], {}) == [{}]
