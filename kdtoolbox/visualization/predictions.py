"""Draw the ground truth and the predictions of several models side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor

from kdtoolbox.visualization.boxes import (
    FALSE,
    TRUE,
    Mark,
    draw_marks,
    predicted_marks,
    truth_marks,
)
from kdtoolbox.visualization.canvas import fit, font_of
from kdtoolbox.visualization.comparisons import Picture
from kdtoolbox.visualization.grid import Panel
from kdtoolbox.visualization.label_maps import draw_errors, draw_labels, draw_legend
from kdtoolbox.visualization.scenes import Scene

BOXES = (
    'Green: a true prediction, of the right class and with an IoU of at least 0.5 with '
    'an object, once per object. Magenta: a false prediction. White: ground truth. '
    'Labels: class and score, where there is room. Shown are the 40 best predictions '
    'with a score of at least 0.3.'
)
LABEL_MAPS = (
    'First row: the classes, in the colours of the list. Second row: green pixels have '
    'the right class, magenta ones a wrong class, and black ones do not count.'
)
IGNORED = 255


@contextmanager
def evaluating(model: BaseModel) -> Iterator[None]:
    """Let a model predict in the block without any effect on its training."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def predict(model: BaseModel, inputs: Tensor, data_samples: Sequence) -> list[Any]:
    """Return the samples with predictions in pixels of the inputs.

    Without this, mmdet and mmseg return them in pixels of the original images, before
    the augmentation of a training.

    Args:
        model: A detector of mmdet or a segmentor of mmseg.
        inputs: Images (N, C, H, W), normalised for this model.
        data_samples: Their samples, which are not changed.
    """
    samples = [sample.clone() for sample in data_samples]
    for sample in samples:
        shape = tuple(sample.img_shape[:2])
        sample.set_metainfo(dict(ori_shape=shape, scale_factor=(1.0, 1.0), flip=False))
    with evaluating(model):
        return model(inputs, samples, mode='predict')


def draw_predictions(
    scene: Scene, predictions: Mapping[str, Any], meta: Mapping[str, Any]
) -> Picture | None:
    """Draw the ground truth and the predictions of some models for one image.

    Args:
        scene: The image with its ground truth.
        predictions: For the name of each model its sample, as `predict` returns it.
        meta: ``classes`` of the data set, and its ``palette`` for label maps.

    Returns:
        The rows and a caption, or None if there are neither boxes nor label maps.
    """
    classes, sample = list(meta.get('classes') or ()), scene.sample
    boxes = _with(predictions, 'pred_instances')
    if boxes and 'gt_instances' in sample:
        return Picture([_box_row(scene, boxes, classes)], BOXES)
    maps = _with(predictions, 'pred_sem_seg')
    if maps and 'gt_sem_seg' in sample:
        palette = meta.get('palette') or _grey_palette(len(classes))
        return Picture(_map_rows(scene, maps, classes, palette), LABEL_MAPS)
    return None


def _with(predictions: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {name: sample for name, sample in predictions.items() if field in sample}


def _box_row(
    scene: Scene, predictions: Mapping[str, Any], classes: Sequence[str]
) -> list[Panel]:
    truth = scene.sample.gt_instances
    marks = truth_marks(truth, classes)
    row = [(f'ground truth: {len(marks)}', draw_marks(scene.image, marks))]
    for name, sample in predictions.items():
        found = predicted_marks(sample.pred_instances, truth, classes)
        title = f'{name}: {_count(found, TRUE)} true, {_count(found, FALSE)} false'
        row.append((title, draw_marks(scene.image, found)))
    return row


def _count(marks: Sequence[Mark], colour: tuple) -> int:
    return sum(mark.colour == colour for mark in marks)


def _map_rows(
    scene: Scene,
    predictions: Mapping[str, Any],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> list[list[Panel]]:
    truth = _labels(scene.sample.gt_sem_seg, scene)
    ignored = scene.sample.metainfo.get('ignore_index', IGNORED)
    found = {
        name: _labels(sample.pred_sem_seg, scene)
        for name, sample in predictions.items()
    }
    first = [('ground truth', draw_labels(scene.image, truth, palette))]
    second = [('input', fit(scene.image))]
    for name, labels in found.items():
        first.append((name, draw_labels(scene.image, labels, palette)))
        counts = truth != ignored
        share = (labels == truth)[counts].mean() if counts.any() else 0.0
        errors = draw_errors(scene.image, labels, truth, ignored)
        second.append((f'{name}: {share:.1%} of pixels right', errors))
    shown = np.unique(np.stack([truth, *found.values()]))
    named = [label for label in shown.tolist() if label < len(classes)]
    width = sum(panel.shape[1] for _, panel in first)
    legend = draw_legend(
        width,
        round(font_of(first[0][1]).size),
        [classes[i] for i in named],
        [palette[i] for i in named],
    )
    return [first, [('', legend)], second] if named else [first, second]


def _labels(label_map: Any, scene: Scene) -> np.ndarray:
    """Return the labels (H, W) of an image without its padding."""
    height, width = scene.image.shape[:2]
    return label_map.data.reshape(label_map.shape[-2:]).cpu().numpy()[:height, :width]


def _grey_palette(count: int) -> list[list[int]]:
    return [[round(255 * i / max(1, count - 1))] * 3 for i in range(count)]
