"""Try a distillation part by part on made-up images."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from kdtoolbox.distillers.building import Ends, Wires
from kdtoolbox.distillers.calls import call, compare, context_of
from kdtoolbox.distillers.dense_targets import record_targets
from kdtoolbox.distillers.distiller import merge, note_ignored_label
from kdtoolbox.distillers.graph import running_order
from kdtoolbox.distillers.sources.assembly import as_made_by, as_seen_by, models_of
from kdtoolbox.inspection.parts import Parts
from kdtoolbox.inspection.reports import Faults
from kdtoolbox.recorders import Recorder, Records, record
from kdtoolbox.teachers.normalization import Renormalization


@dataclass
class Trial:
    """What one forward of both models has made.

    Attributes:
        wires: The wires that were made, those of connectors included.
        compared: The losses that were computed.
        context: What losses read besides wires.
        task_losses: The student's own losses.
        missed: Why the models made no wires, if they failed for a reason that random
            weights and images may explain.
    """

    wires: Wires = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    task_losses: dict[str, Any] = field(default_factory=dict)
    missed: str = ''


class ModelFailure(Exception):  # noqa: N818 - it is no fault of the config
    """A model cannot process the made-up images."""


def try_parts(parts: Parts, images: Tensor, samples: list, faults: Faults) -> Trial:
    """Run both models, all connectors and all losses that work so far.

    What reads a wire that was not made is not tried: it is no fault of its own.

    Args:
        parts: The parts; both models were built.
        images: Images (N, C, H, W) for the student.
        samples: Their samples.
        faults: Gets all faults.
    """
    trial = Trial()
    try:
        _run_models(trial, parts, images, samples, faults)
    except ModelFailure as failure:
        trial.missed = str(failure)
        return trial
    for name in _order(parts.connections):
        where, ends = f'model.connectors.{name}', parts.connections[name]
        if _ready(name, parts.connectors, ends, trial.wires):
            inputs = [trial.wires[wire] for wire in ends.values()]
            try:
                trial.wires[name] = call(where, parts.connectors[name], *inputs)
            except ValueError as error:
                faults(error)
    for name, ends in parts.comparisons.items():
        if _ready(name, parts.losses, ends, trial.wires):
            where, loss = f'model.losses.{name}', parts.losses[name]
            if not {*context_of(loss)} <= {'level', *trial.context}:
                continue
            try:
                terms = compare(where, loss, ends, trial.wires, trial.context, {})
                trial.compared.append(name)
                merge(trial.task_losses, {name + key: terms[key] for key in terms})
            except ValueError as error:
                faults(error)
    return trial


def _ready(name: str, built: Any, ends: dict[str, str], wires: Wires) -> bool:
    return name in built and all(wire in wires for wire in ends.values())


def _order(connections: Ends) -> list[str]:
    try:
        return running_order(connections)
    except ValueError:
        return []


def _run_models(
    trial: Trial, parts: Parts, images: Tensor, samples: list, faults: Faults
) -> None:
    """Add the wires of records and sources, and what losses read besides wires.

    Raises:
        ModelFailure: If a model fails.
    """
    student: Any = parts.trained['student']
    note_ignored_label(student, samples)
    wanted = [
        parts.comparisons[name]
        for name, loss in parts.losses.items()
        if 'targets' in context_of(loss)
    ]

    with ExitStack() as stack:
        observed = [
            stack.enter_context(source.observe(models_of(source, parts.models)))
            for source in parts.sources
        ]
        targets = stack.enter_context(record_targets(student, bool(wanted)))
        trial.wires = {
            f'{side}.{name}': levels
            for side, run in _runs(trial, parts, images, samples).items()
            for name, levels in _records(side, run, parts, faults).items()
        }
    for source, found in zip(parts.sources, observed, strict=True):
        both, seen = models_of(source, parts.models), as_seen_by(source, trial.wires)
        try:
            trial.wires |= as_made_by(source, source.make_wires(both, seen, found))
        except Exception as error:
            faults(error, where=source.where)
    size = tuple(images.shape[-2:])
    trial.context = dict(data_samples=samples, batch_input_shape=size)
    if wanted:
        try:
            trial.context['targets'] = targets.read(samples)
        except ValueError as error:
            if any(_reachable(ends, trial.wires, parts) for ends in wanted):
                faults(error)


def _runs(
    trial: Trial, parts: Parts, images: Tensor, samples: list
) -> Mapping[str, Callable[[Mapping[str, Recorder]], Records]]:
    """Return for each model a function that runs it and returns records."""

    def observe(name: str, recorders: Mapping[str, Recorder]) -> Records:
        return parts.teachers[name].observe(recorders, images, samples)

    def train(name: str, recorders: Mapping[str, Recorder]) -> Records:
        model, where = parts.trained[name], f'model.recorders.{name}'
        own = parts.trained['student'].data_preprocessor
        convert = Renormalization(own, model.data_preprocessor, f'model.peers.{name}')
        with record(model, recorders, require_grad=True, where=where) as records:
            losses = model(convert(images, samples), samples, mode='loss')
        if name == 'student':
            trial.task_losses = losses
        return records

    hidden = {name: partial(observe, name) for name in parts.teachers}
    hidden = {name: partial(observe, name) for name in parts.teachers}
    return hidden | {name: partial(train, name) for name in parts.trained}


def _reachable(ends: dict[str, str], wires: Wires, parts: Parts) -> bool:
    return {*ends.values()} <= {*wires, *parts.connections}


def _records(
    side: str, run: Callable[[dict], Records], parts: Parts, faults: Faults
) -> Records:
    """Run a model again without each recorder that fails, and return the records."""
    recorders = dict(parts.recorders[side])
    while True:
        try:
            return run(recorders)
        except Exception as error:
            failed = [
                name
                for name in recorders
                if str(error).startswith(f'model.recorders.{side}.{name}:')
            ]
            if not failed:
                told = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
                raise ModelFailure(f'the {side} failed: {told}') from error
            faults(error)
            del recorders[failed[0]]
