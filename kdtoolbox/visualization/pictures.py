"""Draw all pictures of a training step of a distillation."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.observing import Step
from kdtoolbox.visualization.attention import draw_attention
from kdtoolbox.visualization.comparisons import Picture, draw_channels, draw_features
from kdtoolbox.visualization.grid import compose
from kdtoolbox.visualization.masks import draw_masks
from kdtoolbox.visualization.predictions import draw_predictions, predict
from kdtoolbox.visualization.scenes import Scene, scenes_of

KINDS = ('features', 'predictions', 'masks', 'channels', 'attention')
"""What can be drawn."""

Pictures = dict[str, np.ndarray]
"""RGB images (H, W, 3) of bytes by name."""


@torch.no_grad()
def draw_step(
    distiller: Distiller,
    step: Step,
    kinds: Collection[str],
    meta: Mapping[str, Any],
    note: str = '',
    images: int = 1,
) -> list[Pictures]:
    """Draw what a step compares: features, masks, channels and attention.

    Args:
        distiller: The model.
        step: A step that one of its observers got.
        kinds: Some of `KINDS`.
        meta: Meta information of the data set, with ``classes``.
        note: Ends each caption; says what the models are.
        images: Number of images of the batch at most.

    Returns:
        For each image its pictures; the names are such as ``features_loss_cwd``. What
        a loss does not have is left out.
    """
    drawn = []
    for scene in scenes_of(step, distiller.data_preprocessor, images):
        found: dict[str, Picture | None] = {}
        for name in _computed(distiller, step):
            read = (distiller, step, name, scene)
            if 'features' in kinds:
                found[f'features_{name}'] = draw_features(*read)
            if 'masks' in kinds:
                classes = list(meta.get('classes') or ())
                found[f'masks_{name}'] = draw_masks(*read, classes)
            if 'channels' in kinds:
                found[f'channels_{name}'] = draw_channels(*read)
        if 'attention' in kinds:
            for name in _common_records(distiller, step):
                found[f'attention_{name}'] = draw_attention(step, name, scene)
        drawn.append(_composed(found, note))
    return drawn


def _computed(distiller: Distiller, step: Step) -> list[str]:
    """Return the losses whose wires were made; some are not for a weight of 0."""
    ends = distiller.wiring.comparisons
    return [n for n in distiller.losses if {*ends[n].values()} <= step.wires.keys()]


def _common_records(distiller: Distiller, step: Step) -> list[str]:
    student, teacher = (distiller.recorders.get(side, {}) for side in SIDES)
    made = step.wires
    return [n for n in student if n in teacher and f'teacher.{n}' in made]


def draw_models(
    distiller: Distiller,
    step: Step,
    meta: Mapping[str, Any],
    note: str = '',
    images: int = 1,
) -> list[Pictures]:
    """Draw the predictions of student and teachers beside the ground truth.

    A teacher that predicts nothing, or that sees the images at another scale, has no
    picture.

    Args:
        distiller: The model.
        step: A step whose images are predicted.
        meta: Meta information of the data set, with ``classes``.
        note: Ends each caption.
        images: Number of images of the batch at most.

    Returns:
        For each image its picture, named ``predictions``.
    """
    inputs, samples = step.inputs[:images], step.data_samples[:images]
    found = dict(student=predict(distiller.student, inputs, samples))
    for name, teacher in distiller.teachers.items():
        if teacher.plain and hasattr(teacher.model, 'predict'):
            found[name] = predict(teacher.model, *teacher.see(inputs, samples))
    scenes = scenes_of(step, distiller.data_preprocessor, images)
    return [_composed(_predicted(scene, found, meta), note) for scene in scenes]


def _predicted(
    scene: Scene, both: Mapping[str, list], meta: Mapping[str, Any]
) -> dict[str, Picture | None]:
    predictions = {name: samples[scene.number] for name, samples in both.items()}
    return dict(predictions=draw_predictions(scene, predictions, meta))


def _composed(found: Mapping[str, Picture | None], note: str) -> Pictures:
    return {
        name: compose(picture.rows, f'{picture.caption}\n{note}')
        for name, picture in found.items()
        if picture is not None
    }
