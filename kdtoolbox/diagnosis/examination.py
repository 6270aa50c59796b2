"""Run all measurements of a distillation on a few batches."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.class_names import check_class_names
from kdtoolbox.datasets.head_labels import class_heads
from kdtoolbox.diagnosis.loss_meter import LossMeter
from kdtoolbox.diagnosis.measurements import Classes, Measurements, Scores
from kdtoolbox.diagnosis.overfitting import overfit
from kdtoolbox.diagnosis.random_twin import compare_losses, random_twin
from kdtoolbox.diagnosis.scoring import Result, best_value, main_metric, score
from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import NonFiniteError
from kdtoolbox.inspection.quiet import first_iteration


@dataclass
class Case:
    """What is examined.

    Attributes:
        distiller: The distiller, which is not changed.
        teacher: The teacher's config, as ``Teacher`` takes it.
        train: Batches of the training data.
        val: Batches of the validation data.
        evaluator: ``val_evaluator`` of the config; None for no scores.
        metainfo: ``metainfo`` of the validation data.
        dataset: The training data, without wrappers.
        wanted: ``save_best`` of the config.
        steps: Steps of the training on one batch.
    """

    distiller: Distiller
    teacher: str | dict
    train: Sequence[Any]
    val: Sequence[Any]
    evaluator: dict | Sequence[dict] | None
    metainfo: Mapping[str, Any]
    dataset: BaseDataset | None
    wanted: Any = None
    steps: int = 30


def examine(case: Case) -> Measurements:
    """Return all measurements of a case."""
    found = Measurements(classes=compare_classes(case))
    models: dict[str, Any] = dict(student=deepcopy(case.distiller.student))
    if found.classes.differ:
        found.task_losses.fault = 'its classes are not those of the data'
    else:
        models['teacher'] = case.distiller.teacher.model
        models['random'] = random_twin(case.teacher, _device(case.distiller))
        found.task_losses = compare_losses(
            models['teacher'], models['random'], case.train
        )
    found.scores = compare_scores(case, models)
    try:
        meter = measure_losses(case)
        found.losses, found.similarities = meter.reports(), meter.similarities
        # A batch without objects has no loss that could fall.
        values = meter.task_values
        batch = case.train[values.index(max(values))]
        found.overfit = overfit(case.distiller, batch, case.steps)
    except NonFiniteError as error:
        found.fault = str(error)
    return found


def _device(distiller: Distiller) -> torch.device:
    return next(distiller.parameters()).device


def compare_classes(case: Case) -> Classes:
    """Return the class lists of teacher and data."""
    teacher, dataset = case.distiller.teacher, case.dataset
    found = Classes(teacher.classes)
    found.counts = (_count(teacher.model), _count(case.distiller.student))
    if dataset is None:
        return found
    names = dataset.metainfo.get('classes')
    found.data = None if names is None else tuple(map(str, names))
    try:
        check_class_names(case.distiller, dataset, 'train_dataloader.dataset')
    except ValueError as error:
        found.fault = str(error)
    return found


def _count(model: Any) -> int | None:
    counts = [getattr(head, 'num_classes', None) for _, head in class_heads(model)]
    return next((count for count in counts if count is not None), None)


def compare_scores(case: Case, models: Mapping[str, Any]) -> Scores:
    """Return the scores of the student, the teacher and its random twin.

    Args:
        case: The case.
        models: The models by these names; only the student is always there.
    """
    if case.evaluator is None or not case.val:
        return Scores(fault='the config has no validation data and no `val_evaluator`')
    results: dict[str, Result] = {}
    fault = '' if 'teacher' in models else 'its classes are not those of the data'
    for name, model in models.items():
        try:
            results[name] = score(model, case.val, case.evaluator, case.metainfo)
        except Exception as error:
            if name == 'student':
                raise
            fault = fault or f'{type(error).__name__}: {error}'
    return _scores(results, fault, case)


def _scores(results: Mapping[str, Result], fault: str, case: Case) -> Scores:
    names = {key: None for result in results.values() for key in result.metrics}
    metric = main_metric(names, case.wanted)
    images = sum(len(batch['inputs']) for batch in case.val)
    if metric is None:
        return Scores(images=images, fault=fault or 'the metric gave no number')
    # mmdet's metric gives nothing at all for a model that detects nothing.
    values = {name: result.metrics.get(metric, 0.0) for name, result in results.items()}
    every = [v for result in results.values() for v in result.classes.values()]
    perfect = best_value(metric, [*values.values(), *every])
    scores = Scores(metric, images, perfect, fault=fault)
    scores.teacher, scores.student, scores.random = map(
        values.get, ('teacher', 'student', 'random')
    )
    if 'teacher' in results:
        of_student = results['student'].classes
        scores.classes = {
            name: (value, of_student.get(name, 0.0))
            for name, value in results['teacher'].classes.items()
        }
    return scores


def measure_losses(case: Case) -> LossMeter:
    """Run the training batches through a copy of the distiller and measure them."""
    copy = deepcopy(case.distiller).train()
    meter = LossMeter(copy)
    copy.observers.append(meter)
    with torch.random.fork_rng(), first_iteration():
        torch.manual_seed(0)
        for batch in case.train:
            data = copy.data_preprocessor(deepcopy(batch), training=True)
            copy(**data, mode='loss')
    return meter
