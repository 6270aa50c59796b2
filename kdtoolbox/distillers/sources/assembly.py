"""Build the sources of a config and combine what they record and make."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kdtoolbox.configuration import Report, did_you_mean, refuse
from kdtoolbox.distillers.building import (
    Sides,
    argument_faults,
    find_class,
    placed,
)
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.recorders import check_recorders
from kdtoolbox.registry import MODELS

_KEYS = ('type', '_scope_', 'teacher')


def build_sources(configs: Sequence[dict], report: Report = refuse) -> list[Source]:
    """Build the sources of ``model.sources`` in their order.

    Args:
        configs: The configs of the sources.
        report: Gets all faults; what has one is left out. By default the first is
            raised.

    Raises:
        ValueError: If ``configs`` is no list, a type is not a source or occurs twice,
            a required source is not earlier, or a source rejects its arguments.
        TypeError: If a source has an unknown argument.
    """
    if not isinstance(configs, list | tuple):
        malformed = ValueError(
            f'model.sources: expected a list of dicts, got {configs!r}; write '
            "sources=[dict(type='RoIResponses')]; for none write []"
        )
        report(malformed)
        return []
    sources: list[Source] = []
    places: dict[str, str] = {}
    for index, config in enumerate(configs):
        where = f'model.sources[{index}]'
        try:
            kind = _source_class(config, where)
        except ValueError as error:
            report(error)
            continue
        arguments = {k: v for k, v in config.items() if k not in _KEYS}
        faults: list[Exception] = [
            *_place_faults(kind, places, where),
            *argument_faults(kind, arguments, where),
        ]
        places.setdefault(kind.__name__, where)
        for fault in faults:
            report(fault)
        if not faults:
            sources += _built(kind, config, arguments, where, report)
    return sources


def _built(
    kind: type[Source],
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    where: str,
    report: Report,
) -> list[Source]:
    try:
        source = kind(**arguments)
    except (KeyError, TypeError, ValueError) as error:
        # The errors of a source's constructor begin with the key.
        report(placed(error, f'{where}.'))
        return []
    source.where = where
    source.teacher = config.get('teacher', source.teacher)
    return [source]


def _source_class(config: Any, where: str) -> type[Source]:
    if not isinstance(config, Mapping) or 'type' not in config:
        raise ValueError(
            f'{where}: expected a dict with `type`, got {config!r}; write '
            "sources=[dict(type='RoIResponses')]"
        )
    MODELS.import_from_location()
    kind = find_class(config.get('type'), where)
    if not issubclass(kind, Source):
        known = [k for k, v in MODELS.module_dict.items() if issubclass(v, Source)]
        raise ValueError(
            f'{where}: {kind.__name__} is not a source of wires'
            f'{did_you_mean(kind.__name__, known)}'
        )
    return kind


def _place_faults(
    kind: type[Source], places: Mapping[str, str], where: str
) -> Iterator[ValueError]:
    if kind.__name__ in places:
        yield ValueError(
            f'{where}: {kind.__name__} occurs twice, also as {places[kind.__name__]}; '
            'remove one of them'
        )
    if kind.follows and kind.follows not in places:
        yield ValueError(
            f'{where}: {kind.__name__} reads the wires of {kind.follows}; write '
            f"sources=[dict(type='{kind.follows}'), dict(type='{kind.__name__}', ...)]"
        )


def models_of(source: Source, models: Mapping[str, Any]) -> Models:
    """Return the two models that a source reads.

    Raises:
        ValueError: If the distillation has no such teacher.
    """
    if source.teacher not in models:
        names = sorted({*models} - {'student'})
        raise ValueError(
            f'{source.where}.teacher: no model {source.teacher!r}; '
            + (f'name one of {names}' if names else 'set `model.teacher`')
        )
    return Models(models['student'], models[source.teacher])


def as_seen_by(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return wires, or recorders by side, with the teacher's under 'teacher'."""
    return _renamed(values, source.teacher, 'teacher')


def as_made_by(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a source made with the name of its teacher instead of 'teacher'."""
    return _renamed(values, 'teacher', source.teacher)


def _renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    if old == new:
        return dict(values)
    return {
        new + key.removeprefix(old) if key.partition('.')[0] == old else key: value
        for key, value in values.items()
    }


def connect_sources(
    sources: Iterable[Source],
    models: Mapping[str, Any],
    recorders: Recorders,
    read: set[str],
) -> tuple[Recorders, Sides]:
    """Return all recorders, and all wires with the models that each depends on.

    Args:
        sources: The sources in the order of the config.
        models: The student and the other models by name.
        recorders: The recorders of the config.
        read: The wires that connectors and losses read.

    Raises:
        ValueError: If a source rejects the models, a recorder matches no module, or two
            recorders or wires have one name.
    """
    owners: dict[str, Source | None] = dict.fromkeys(_wires_of(recorders))
    complete = {side: dict(recorders[side]) for side in models}
    for source in sources:
        added = as_made_by(source, source.record(models_of(source, models)))
        reserved = dict.fromkeys(('student', source.teacher), source.reserved)
        _claim(owners, source, [w for w in _wires_of(reserved) if w in owners])
        _claim(owners, source, _wires_of(added))
        for side, named in added.items():
            complete[side] |= named
    for side, model in models.items():
        check_recorders(model, complete[side], f'model.recorders.{side}')
    sides = {wire: {wire.partition('.')[0]} for wire in _wires_of(complete)}
    for source in sources:
        both = models_of(source, models)
        wanted = [*as_seen_by(source, dict.fromkeys(read))]
        made = source.connect(both, as_seen_by(source, complete), wanted)
        made = {
            wire: {*as_made_by(source, dict.fromkeys(depends))}
            for wire, depends in as_made_by(source, made).items()
        }
        _claim(owners, source, made)
        sides |= made
    return complete, sides


def _wires_of(recorders: Mapping[str, Iterable[str]]) -> list[str]:
    return [f'{side}.{name}' for side, names in recorders.items() for name in names]


def _claim(
    owners: dict[str, Source | None], source: Source, wires: Iterable[str]
) -> None:
    """Record the owner of each wire; raise ValueError if another source owns it.

    Args:
        owners: The source that makes each wire, None for a recorder of the config.
        source: The source that makes the wires. It may replace its own records.
        wires: The names of the wires.
    """
    kind = type(source).__name__
    taken = sorted(w for w in wires if owners.setdefault(w, source) is not source)
    for wire in taken:
        other = owners[wire]
        if other is not None:
            raise ValueError(
                f'{source.where}: {kind} makes the wire {wire!r}, and so does '
                f'{type(other).__name__}, {other.where}; remove one of the two'
            )
    if taken:
        side = taken[0].partition('.')[0]
        names = [w.partition('.')[2] for w in taken if w.startswith(f'{side}.')]
        raise ValueError(
            f'model.recorders.{side}: {kind} makes {names} itself; choose other names'
        )
