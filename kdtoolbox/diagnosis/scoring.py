"""Score models on some validation images with the metric of a config."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from math import isfinite
from numbers import Real
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel

from kdtoolbox.diagnosis.class_ious import ClassIoUs
from kdtoolbox.diagnosis.silence import quiet

_ENDINGS = ('mAP', 'mIoU', 'PQ', 'mDice', 'AP')
"""Ends of the names of metrics that sum up a result; the first one found counts."""


class Result(NamedTuple):
    """Result of one model.

    Attributes:
        metrics: All values of the metric.
        classes: The value of each class, as far as known.
    """

    metrics: dict[str, float]
    classes: dict[str, float]


def score(
    model: BaseModel,
    batches: Iterable[Mapping[str, Any]],
    evaluator: dict | Sequence[dict],
    metainfo: Mapping[str, Any],
) -> Result:
    """Return the result of a model on batches of validation data.

    The images pass through the data preprocessor of the model itself.

    Args:
        model: The model, which is in eval mode afterwards.
        batches: Batches of a data loader, which are not changed.
        evaluator: ``val_evaluator`` of a config. COCO's metric counts only the images
            of the batches.
        metainfo: ``metainfo`` of the data set.
    """
    ious = ClassIoUs(metainfo.get('classes') or ())
    with TemporaryDirectory() as folder, quiet():
        found = Evaluator(_redirected(evaluator, folder))
        found.dataset_meta = metainfo
        ids = _predict(model, batches, found, ious)
        _limit(found, ids)
        metrics = found.evaluate(len(ids))
    return _sorted_out(metrics, ious.values())


def _redirected(evaluator: dict | Sequence[dict], folder: str) -> list[dict]:
    """Return the configs of metrics, which write into ``folder`` if they write."""
    configs = [evaluator] if isinstance(evaluator, Mapping) else evaluator
    configs = [deepcopy(dict(config)) for config in configs]
    for index, config in enumerate(configs):
        for key in ('outfile_prefix', 'output_dir'):
            if config.get(key):
                config[key] = f'{folder}/{index}'
    return configs


def _predict(
    model: BaseModel, batches: Iterable[Any], found: Evaluator, ious: ClassIoUs
) -> list:
    """Pass all predictions to the metrics and return the ids of the images."""
    ids = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            samples = model.val_step(deepcopy(batch))
            found.process(samples, batch)
            ious.add(samples)
            ids += [sample.get('img_id') for sample in samples]
    return ids


def _limit(found: Evaluator, ids: list) -> None:
    for metric in found.metrics:
        # These two are mmdet's CocoMetric's. Images outside of the batches would count
        # as missed objects.
        if hasattr(metric, 'img_ids'):
            metric.img_ids = ids
        if hasattr(metric, 'classwise'):
            metric.classwise = True


def _sorted_out(metrics: Mapping[str, Any], ious: dict[str, float]) -> Result:
    """Separate the values of classes from those of all classes."""
    kept, classes = {}, {}
    for key, value in metrics.items():
        if not isinstance(value, Real) or not isfinite(value):
            continue
        if key.endswith('_precision'):
            name = key.rpartition('/')[2].removesuffix('_precision')
            classes[name] = float(value)
        else:
            kept[key] = float(value)
    return Result(kept, classes or ious)


def main_metric(metrics: Iterable[str], wanted: Any = None) -> str | None:
    """Return the metric that sums up a result.

    Args:
        metrics: Names of the known metrics.
        wanted: ``save_best`` of the config.

    Example:
        >>> main_metric(['coco/bbox_mAP_50', 'coco/bbox_mAP'])
        'coco/bbox_mAP'
    """
    names = [*metrics]
    if wanted in names:
        return str(wanted)
    for ending in _ENDINGS:
        for name in names:
            if name.endswith(ending):
                return name
    return names[0] if names else None


def best_value(metric: str, values: Iterable[float]) -> float:
    """Return the best possible value of a metric, 1 or 100.

    mmseg's metrics and the panoptic quality are percentages.

    Example:
        >>> best_value('mIoU', [0.5]), best_value('coco/bbox_mAP', [0.5])
        (100.0, 1.0)
    """
    name = metric.rpartition('/')[2]
    percent = name in ('mIoU', 'aAcc', 'mAcc', 'mDice', 'mFscore', 'PQ')
    return 100.0 if percent or max(values, default=0) > 1 else 1.0
