"""Find everything that is wrong with a config, without weights and without data."""

import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from kdtoolbox.distillers import Distiller, Pretrainer
from kdtoolbox.distillers.pretrainer import PARTS
from kdtoolbox.inspection.batches import (
    image_channels,
    made_up_batch,
    sides_of,
)
from kdtoolbox.inspection.context import Context
from kdtoolbox.inspection.cures import add_cures, type_cure
from kdtoolbox.inspection.mending import kind_of, meant, mended
from kdtoolbox.inspection.models import attempt
from kdtoolbox.inspection.outline import Outline, quick_outline
from kdtoolbox.inspection.parts import Parts, build_parts
from kdtoolbox.inspection.quiet import first_iteration
from kdtoolbox.inspection.recipe_checks import check_recipe
from kdtoolbox.inspection.reports import Fault, Faults
from kdtoolbox.inspection.trial import Trial, try_parts
from kdtoolbox.teachers.kinds import without_weights
from kdtoolbox.teachers.models import build_model


@dataclass
class Examination:
    """What a config describes, and what is wrong with it.

    Attributes:
        faults: All faults.
        models: The models by side, or a single one as 'model'.
        outlines: Their outlines.
        parts: The parts of a distillation.
        trial: What they made of images.
        tried: The faults that only the images have shown.
    """

    faults: Faults = field(default_factory=Faults)
    models: dict[str, BaseModel] = field(default_factory=dict)
    outlines: dict[str, Outline] = field(default_factory=dict)
    parts: Parts | None = None
    trial: Trial = field(default_factory=Trial)
    tried: Faults = field(default_factory=Faults)


def find_faults(cfg: Config) -> list[Fault]:
    """Return everything that is wrong with the model of a config.

    Each part is built and tried on its own, so one fault hides no other. What fails
    only because something else does is not listed. Files of weights are not read.

    Args:
        cfg: The config of a run, which stays unchanged.
    """
    return [*examine(cfg).faults]


def examine(cfg: Config) -> Examination:
    """Build and try all parts of a config; return them with their faults.

    Args:
        cfg: The config of a run, which stays unchanged.
    """
    found = Examination()
    check_recipe(cfg, found.faults)
    model = deepcopy(dict(cfg.get('model') or {}))
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope')),
        torch.random.fork_rng(),
        first_iteration(),
        warnings.catch_warnings(),
    ):
        # A training gives them again.
        warnings.simplefilter('ignore')
        torch.manual_seed(0)
        kind = kind_of(model.get('type'))
        if kind is None:
            _examine_plain(cfg, model, found)
        elif issubclass(kind, Distiller):
            model = meant(model, kind)
            if issubclass(kind, Pretrainer):
                model.setdefault('parts', PARTS)
            else:
                # A fault already, if it is there.
                model.pop('parts', None)
            advised: dict[str, str] = {}
            _examine_distiller(model, found, advised)
            _examine_mended(model, found, advised)
        else:
            _examine_trainer(model, kind, found)
    for fault in found.faults:
        found.faults.cure(fault, type_cure(fault.problem))
    return found


def _examine_trainer(model: dict, kind: type, found: Examination) -> None:
    """Examine a model around a teacher alone."""
    if found.faults:
        return
    random = without_weights(model['teacher'])
    arguments = {key: model[key] for key in model if key != 'type'}
    built = attempt(
        lambda: kind(**dict(arguments, teacher=random)), 'model', found.faults
    )
    found.models = dict(teacher=built.teacher.model) if built is not None else {}
    _outline(found)


def _examine_plain(cfg: Config, model: dict, found: Examination) -> None:
    if found.faults:
        return
    try:
        whole = dict(model=model, default_scope=cfg.get('default_scope'))
        found.models = dict(model=build_model(whole, where='model'))
    except Exception as error:
        found.faults(error, where='model')
    _outline(found)


def _examine_distiller(
    model: dict, found: Examination, advised: dict[str, str]
) -> None:
    found.parts = build_parts(model, found.faults)
    found.models = found.parts.models
    _outline(found)
    if found.parts.complete:
        _try(found, found.parts)
    shapes = {
        wire: [tuple(level.shape) for level in levels]
        for wire, levels in found.trial.wires.items()
    }
    context = Context(model, found.parts, found.outlines, shapes, advised)
    add_cures(context, found.trial, found.tried, found.faults)


def _examine_mended(model: dict, found: Examination, advised: dict[str, str]) -> None:
    """Examine the config without its typos, for the faults behind them."""
    without = mended(model, found.faults)
    if without is not None:
        behind = Examination()
        _examine_distiller(without, behind, advised)
        for fault in behind.faults:
            found.faults.add(fault)


def _outline(found: Examination) -> None:
    found.outlines = {name: quick_outline(m) for name, m in found.models.items()}


def _try(found: Examination, parts: Parts) -> None:
    """Try all parts on small images, and on the usual ones if something fails."""
    student: Any = parts.trained['student']
    student.train()
    for side in sides_of(student):
        torch.manual_seed(0)
        found.tried = Faults()
        try:
            images, samples = made_up_batch(student, side)
        except Exception as error:
            found.trial.missed = f'no images for the student: {error}'
            return
        found.trial = try_parts(parts, images, samples, found.tried)
        if not found.tried and not found.trial.missed:
            return
    for fault in found.tried:
        found.faults.add(fault)
    if found.trial.missed:
        _compare_images(found)


def _compare_images(found: Examination) -> None:
    """Report models that read images of different channels, if one has failed."""
    student = image_channels(found.models['student'])
    for name, model in found.models.items():
        if image_channels(model) != student and found.parts is not None:
            hidden = found.parts.teachers.get(name)
            where = hidden.where if hidden else f'model.peers.{name}'
            told = (
                f'{where}: it reads images of {image_channels(model)} channels and the '
                f'student {student}; both get the same images: take a teacher that was '
                f'trained on {student} channels'
            )
            found.faults(ValueError(told))
