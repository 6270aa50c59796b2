"""Build the parts of a distillation one by one, and report those that fail."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from kdtoolbox.distillers.building import (
    Ends,
    Sides,
    build_section,
    connector_wires,
    loss_wires,
)
from kdtoolbox.distillers.checks import check_options, check_sides
from kdtoolbox.distillers.graph import check_wiring
from kdtoolbox.distillers.pretrainer import Trunk, check_reached
from kdtoolbox.distillers.sources.assembly import build_sources, connect_sources
from kdtoolbox.distillers.sources.source import Source
from kdtoolbox.inspection.models import (
    attempt,
    build_random,
    build_trained,
    check_images,
    features_of,
)
from kdtoolbox.inspection.reports import Faults
from kdtoolbox.recorders import Recorder, check_recorders
from kdtoolbox.teachers import Teacher
from kdtoolbox.teachers.kinds import (
    check_init,
    check_peers,
    named_teachers,
    place_of,
)


@dataclass
class Parts:
    """What works of a distillation; what has a fault is left out.

    Attributes:
        names: The names of all models in the config, those with faults included.
        trained: The student, called 'student', and its peers by name.
        teachers: The teachers with random weights by name.
        sources: The sources of wires.
        named: The recorders of the config, those with faults included.
        recorders: The recorders, those of sources included.
        connectors: The connectors by name.
        connections: The wires that each connector reads; all connectors of the config.
        losses: The losses by name.
        comparisons: The wires that each loss reads; all losses of the config.
    """

    names: list[str] = field(default_factory=list)
    trained: dict[str, BaseModel] = field(default_factory=dict)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    named: dict[str, dict[str, Recorder]] = field(default_factory=dict)
    recorders: dict[str, dict[str, Recorder]] = field(default_factory=dict)
    connectors: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    connections: Ends = field(default_factory=dict)
    losses: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    comparisons: Ends = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Any]:
        """The models that were built, by name."""
        hidden = {name: teacher.model for name, teacher in self.teachers.items()}
        return {**self.trained, **hidden}

    @property
    def complete(self) -> bool:
        """Whether all models were built."""
        return {*self.models} == {*self.names} and 'student' in self.trained


def build_parts(model: Mapping[str, Any], faults: Faults) -> Parts:
    """Build each part of a distillation on its own and check what belongs together.

    Args:
        model: The ``model`` of a config.
        faults: Gets all faults.
    """
    parts = Parts()
    _add_models(parts, model, faults)
    parts.sources = build_sources(model.get('sources', ()), faults)
    lost = len(faults.numbers('model.sources')) > 0
    parts.connectors, parts.connections = build_section(
        model.get('connectors') or {}, 'model.connectors', connector_wires, faults
    )
    parts.losses, parts.comparisons = build_section(
        model.get('losses', {}), 'model.losses', loss_wires, faults
    )
    known = len(faults)
    parts.named = _recorders_of(model, parts.names, faults)
    lost = lost or len(faults) > known
    parts.recorders = _working_recorders(parts, faults)
    trunk, working = parts.trained.get('student'), parts.recorders['student']
    if isinstance(trunk, Trunk) and working and working == parts.named['student']:
        attempt(lambda: check_reached(trunk, working), 'model.recorders', faults)
    sections = (parts.connections, parts.comparisons)
    read = {w for ends in sections for wires in ends.values() for w in wires.values()}
    made, missed = _connect(parts, read, faults)
    sides = made | {
        f'{side}.{name}': {side} for side in parts.names for name in parts.named[side]
    }
    if lost or missed:
        sides |= _unnamed(read, {*sides, *parts.connections}, parts.names)
    trained = [name for name in parts.names if name not in parts.teachers]
    check_wiring(sides, *sections, faults, trained or ['student'])
    check_images(parts.trained.get('student'), parts.teachers, faults)
    return parts


def _add_models(parts: Parts, model: Mapping[str, Any], faults: Faults) -> None:
    parts.trained = build_trained(model, faults)
    student = parts.trained.get('student')
    teacher, teachers = model.get('teacher'), model.get('teachers')
    peers = model.get('peers')
    parts.names = ['student', *(peers if isinstance(peers, Mapping) else ())]
    try:
        named = named_teachers(teacher, teachers)
    except ValueError:
        # `check_recipe` reports it. The recorders are taken to name the right models.
        parts.names += [n for n in model.get('recorders') or () if n not in parts.names]
        return
    for name, config in named.items():
        place = place_of(name, teachers is None)
        built = build_random(config, name, place, student, faults)
        parts.names.append(name)
        if built is not None:
            parts.teachers[name] = built
    attempt(lambda: check_peers(peers, named), 'model.peers', faults)
    init = model.get('init_student', False)
    attempt(lambda: check_init(init, named), 'model.init_student', faults)


def _recorders_of(
    model: Mapping[str, Any], names: list[str], faults: Faults
) -> dict[str, dict[str, Recorder]]:
    given = model.get('recorders') or {side: {} for side in names}
    attempt(lambda: check_sides(given, names), 'model.recorders', faults)
    found: dict[str, dict[str, Recorder]] = {side: {} for side in names}
    if isinstance(given, Mapping):
        for key, named in given.items():
            for side in difflib.get_close_matches(key, names, n=1):
                found[side] |= named if isinstance(named, Mapping) else {}
    return found


def _working_recorders(parts: Parts, faults: Faults) -> dict[str, dict[str, Recorder]]:
    """Return the recorders that match modules; the others become faults."""
    working: dict[str, dict[str, Recorder]] = {side: {} for side in parts.names}
    for side, model in parts.models.items():
        for name, recorder in parts.named[side].items():
            try:
                check_recorders(model, {name: recorder}, f'model.recorders.{side}')
                working[side][name] = recorder
            except ValueError as error:
                faults(error)
    return working


def _connect(parts: Parts, read: set[str], faults: Faults) -> tuple[Sides, bool]:
    """Connect the sources one after another; leave out those that fail.

    Returns:
        The wires of the sources, and whether a source was left out.
    """
    if not parts.complete:
        missed, parts.sources = bool(parts.sources), []
        return {}, missed
    models = parts.models
    attempt(lambda: check_options(parts.sources, parts.teachers), 'model', faults)
    own = parts.recorders
    working: list[Source] = []
    made: Sides = {}
    for source in parts.sources:
        names = {type(other).__name__ for other in working}
        if source.follows and source.follows not in names:
            continue
        try:
            complete, made_now = connect_sources([*working, source], models, own, read)
        except Exception as error:
            faults(error, _without(source, parts), source.where)
            continue
        parts.recorders = {side: dict(complete[side]) for side in models}
        made = dict(made_now)
        working.append(source)
    missed = len(working) < len(parts.sources)
    parts.sources = working
    return made, missed


def _without(source: Source, parts: Parts) -> str:
    """Return a distillation of features, which needs no source."""
    path = features_of(*parts.models.values())
    return (
        f'{source.where} ({type(source).__name__}) needs this; features need '
        'neither it nor the losses on its wires: sources=[], '
        f"recorders=dict(student=dict(fpn='{path}'), teacher=dict(fpn='{path}')), "
        "losses=dict(loss_pkd=dict(type='PKDLoss', student='student.fpn', "
        "teacher='teacher.fpn'))"
    )


def _unnamed(read: set[str], known: set[str], names: list[str]) -> Sides:
    """Return wires that a failed source may make: read, unknown, and no typos."""
    return {
        wire: set(names)
        for wire in read - known
        if not difflib.get_close_matches(wire, known, n=1, cutoff=0.9)
    }
