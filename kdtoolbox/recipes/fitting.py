"""Fit the records, connectors and losses of a shipped recipe to two other models."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import torch

from kdtoolbox.distillers.building import build_section, connector_wires, loss_wires
from kdtoolbox.distillers.graph import running_order
from kdtoolbox.recipes.places import is_logits, places
from kdtoolbox.recipes.sides import Side
from kdtoolbox.recipes.templates import Template, class_of, kinds_of

Shapes = list[tuple[int, ...]]


@dataclass
class Fitted:
    """The sections of a new distillation.

    Attributes:
        recorders: For 'student' and 'teacher' the recorders by name.
        connectors: The connectors by name.
        losses: The losses by name.
        sources: The sources.
        shapes: For each known wire the shape of each level.
    """

    recorders: dict[str, dict[str, Any]]
    connectors: dict[str, dict[str, Any]]
    losses: dict[str, dict[str, Any]]
    sources: list[dict[str, Any]]
    shapes: dict[str, Shapes] = field(default_factory=dict)


def fit(template: Template, student: Side, teacher: Side, at: str | None) -> Fitted:
    """Return the sections of a recipe, fitted to two models.

    Args:
        template: A recipe of the method.
        student: The student.
        teacher: The teacher.
        at: Where feature losses compare; see `places`.

    Raises:
        ValueError: If the models lack a layer, or have different classes where class
            logits are compared.
    """
    model = copy.deepcopy(template.config.model.to_dict())
    fitted = Fitted(
        dict(student={}, teacher={}),
        model.get('connectors') or {},
        model['losses'],
        list(model.get('sources') or []),
    )
    _record(fitted, model.get('recorders') or {}, student, teacher, at)
    _check_classes(fitted, student, teacher)
    for name in running_order(_connections(fitted)):
        _fit_connector(name, fitted)
    for name, loss in fitted.losses.items():
        _align(name, loss, fitted)
        _fit_loss(loss, fitted, student)
    for source in fitted.sources:
        _fit_source(source, student, teacher)
    return fitted


def _record(
    fitted: Fitted,
    recorders: Mapping[str, Mapping[str, Any]],
    student: Side,
    teacher: Side,
    at: str | None,
) -> None:
    """Place the recorders; drop the losses that read a missing auxiliary head."""
    movable = _movable(fitted, recorders)
    sides = dict(student=student, teacher=teacher)
    for name in dict.fromkeys(n for side in sides for n in recorders.get(side, {})):
        own = {side: recorders[side][name] for side in sides if name in recorders[side]}
        pair = (next(iter(own.values())), list(own.values())[-1])
        if str(pair[0]).startswith('auxiliary_head') and not all(
            sides[side].has(path) for side, path in own.items()
        ):
            _drop(fitted, name)
            continue
        found = places(pair, student, teacher, at if name in movable else None)
        for side, recorder in zip(sides, found, strict=True):
            if side in own:
                fitted.recorders[side][name] = recorder
                values = sides[side].values(recorder)
                fitted.shapes[f'{side}.{name}'] = [value.shape for value in values]


def _movable(fitted: Fitted, recorders: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the records that ``--at`` moves: features, or logits if there are none."""
    wires = set(_feature_wires(fitted))
    records = {
        name: path
        for side, named in recorders.items()
        for name, path in named.items()
        if f'{side}.{name}' in wires
    }
    features = {name for name, path in records.items() if not is_logits(path)}
    return features or set(records)


def _drop(fitted: Fitted, record: str) -> None:
    wires = {f'student.{record}', f'teacher.{record}'}
    fitted.losses = {
        name: loss
        for name, loss in fitted.losses.items()
        if not wires & set(map(str, loss.values()))
    }


def _feature_wires(fitted: Fitted) -> Iterator[str]:
    """Yield the wires that are compared as features, before any connector."""
    for loss in fitted.losses.values():
        for key, kind in kinds_of(loss).items():
            if kind.startswith('map') and key in loss:
                yield _source_of(loss[key], fitted)


def _source_of(wire: str, fitted: Fitted) -> str:
    while wire in fitted.connectors:
        wire = fitted.connectors[wire]['input']
    return wire


def _connections(fitted: Fitted) -> dict[str, dict[str, str]]:
    return {
        name: {
            key: config[key]
            for key in connector_wires(class_of(config))
            if key in config
        }
        for name, config in fitted.connectors.items()
    }


def classes_of(side: Side) -> int | None:
    """Return the number of classes of a model's head, if it is known."""
    for path in ('decode_head', 'bbox_head', 'roi_head.bbox_head'):
        head: Any = side.model
        for part in path.split('.'):
            head = getattr(head, part, None)
        if type(head).__name__ == 'ModuleList':
            head = head[-1]
        if hasattr(head, 'num_classes'):
            return head.num_classes
    return None


def _check_classes(fitted: Fitted, student: Side, teacher: Side) -> None:
    kinds = {k for loss in fitted.losses.values() for k in kinds_of(loss).values()}
    numbers = [classes_of(student), classes_of(teacher)]
    if any('logits' in kind for kind in kinds) and numbers[0] != numbers[1]:
        raise ValueError(
            f'the method compares class logits, and the student has {numbers[0]} '
            f'classes, the teacher {numbers[1]}; choose a method that learns from '
            'features, such as --method pkd or cwd with --at neck, backbone or head'
        )


def _partner(key: str, loss: Mapping[str, Any]) -> str | None:
    """Return the wire of the teacher that an argument is compared with."""
    other = key.replace('student', 'teacher')
    return loss.get(other if other in loss else 'teacher')


def _targets(name: str, fitted: Fitted) -> Iterator[str]:
    """Yield the teacher's wires with which the output of a connector is compared."""
    for loss in fitted.losses.values():
        for key in loss_wires(class_of(loss)):
            if loss.get(key) == name and not key.startswith('teacher'):
                partner = _partner(key, loss)
                if partner:
                    yield partner
    for other, ends in _connections(fitted).items():
        if name in ends.values() and other != name:
            yield from _targets(other, fitted)


def _fit_connector(name: str, fitted: Fitted) -> None:
    """Set the channels of a connector and compute the shapes of its output."""
    config = fitted.connectors[name]
    inputs = fitted.shapes.get(config['input'])
    target = next(_targets(name, fitted), None)
    target = _source_of(target, fitted) if target else None
    compared = fitted.shapes.get(target) if target else None
    if inputs is None:
        return
    if inputs[0] and len(inputs[0]) == 3 and config['type'] == 'ConvConnector':
        _map_tokens(name, fitted)
        inputs = fitted.shapes[config['input']]
    widths = [_width(shape) for shape in inputs]
    goals = [_width(shape) for shape in compared] if compared else widths
    if 'in_channels' in config:
        takes_lists = (
            get_type_hints(class_of(config).__init__)['in_channels'] is not int
        )
        listed = isinstance(config['in_channels'], list) or len(inputs) > 1
        config['in_channels'] = widths if listed and takes_lists else widths[0]
    if 'out_channels' in config and config['type'] != 'TranslatorConnector':
        config['out_channels'] = _outputs(config['out_channels'], goals, name, fitted)
    if 'channels' in config:
        config['channels'] = goals[0]
        if widths != goals and len(widths) == len(goals):
            config['input'] = _project(config['input'], widths, goals, fitted)
    _set_levels(config, len(inputs))
    fitted.shapes[name] = _output_shapes(name, fitted)


def _width(shape: tuple[int, ...]) -> int:
    """Return the channels of maps (N, C, H, W), rows (R, C) or tokens (N, L, C)."""
    return shape[2] if len(shape) == 3 else shape[1]


def _set_levels(config: dict[str, Any], count: int) -> None:
    known = inspect.signature(class_of(config)).parameters
    if 'num_levels' in config or ('num_levels' in known and count > 1):
        config['num_levels'] = count


def _outputs(given: Any, goals: list[int], name: str, fitted: Fitted) -> Any:
    """Return the output channels of a connector: those of the teacher's wire."""
    for loss in fitted.losses.values():
        # NORM compares several maps of the student with each of the teacher.
        if loss['type'] == 'NORMLoss' and loss['student'] == name:
            return 4 * goals[0]
    return goals if isinstance(given, list) or len(set(goals)) > 1 else goals[0]


def _map_tokens(name: str, fitted: Fitted) -> None:
    """Reshape tokens to maps in front of a connector."""
    config = fitted.connectors[name]
    made = _tokens(config['input'], fitted)
    config['input'] = made


def _tokens(wire: str, fitted: Fitted) -> str:
    """Add a connector that reshapes the tokens of a wire; return its name."""
    side, _, record = wire.partition('.')
    name = f'{side}_{record}_maps'
    if name not in fitted.connectors:
        count = fitted.shapes[wire][0][1]
        skip = min(range(count), key=lambda n: (not _is_square(count - n), n))
        config = dict(type='TokenConnector', input=wire)
        fitted.connectors[name] = config | (dict(skip=skip) if skip else {})
        fitted.shapes[name] = _output_shapes(name, fitted)
    return name


def _is_square(count: int) -> bool:
    return int(count**0.5) ** 2 == count


def _output_shapes(name: str, fitted: Fitted) -> Shapes:
    """Run a connector on zeros and return the shapes of its output."""
    config = fitted.connectors[name]
    modules, wires = build_section({name: config}, 'model.connectors', connector_wires)
    inputs = [
        [torch.zeros(shape) for shape in fitted.shapes[wire]]
        for wire in wires[name].values()
    ]
    with torch.no_grad():
        return [tuple(level.shape) for level in modules[name](*inputs)]


def _align(name: str, loss: dict[str, Any], fitted: Fitted) -> None:
    """Add the connectors that a loss needs between two wires of unlike shapes."""
    kinds = kinds_of(loss)
    for key, kind in kinds.items():
        if key.startswith('teacher') or 'map' not in kind or key not in loss:
            continue
        partner = _partner(key, loss)
        if partner is None or not {loss[key], partner} <= fitted.shapes.keys():
            continue
        other = key.replace('student', 'teacher')
        loose = kinds.get(other if other in kinds else 'teacher', kind)
        _reshape(loss, key, fitted)
        teachers = other if other in loss else 'teacher'
        _reshape(loss, teachers, fitted)
        if 'channels' not in loose:
            _align_channels(loss, key, loss[teachers], fitted)
        if 'size' not in loose or 'one size' in loose:
            _align_sizes(loss, key, loss[teachers], fitted)


def _reshape(loss: dict[str, Any], key: str, fitted: Fitted) -> None:
    if len(fitted.shapes[loss[key]][0]) == 3:
        loss[key] = _tokens(loss[key], fitted)


def _align_channels(
    loss: dict[str, Any], key: str, partner: str, fitted: Fitted
) -> None:
    widths, goals = (
        [shape[1] for shape in fitted.shapes[wire]] for wire in (loss[key], partner)
    )
    if widths == goals or len(widths) != len(goals):
        return
    # In front of the recipe's own connectors, which keep the number of channels.
    chain = _chain(loss[key], fitted)
    first = chain[-1] if chain else None
    wire = fitted.connectors[first]['input'] if first else loss[key]
    name = _project(wire, widths, goals, fitted)
    if first is None:
        loss[key] = name
        return
    fitted.connectors[first]['input'] = name
    for later in reversed(chain):
        _fit_connector(later, fitted)


def _project(wire: str, widths: list[int], goals: list[int], fitted: Fitted) -> str:
    """Add a convolution that projects a wire to other channels; return its name."""
    name = _free('aligned', fitted)
    fitted.connectors[name] = dict(
        type='ConvConnector',
        input=wire,
        in_channels=widths if len(widths) > 1 else widths[0],
        out_channels=goals if len(set(goals)) > 1 else goals[0],
    )
    fitted.shapes[name] = _output_shapes(name, fitted)
    return name


def _chain(wire: str, fitted: Fitted) -> list[str]:
    """Return the connectors behind a wire, the last one first."""
    chain = []
    while wire in fitted.connectors:
        if fitted.connectors[wire]['type'] != 'TokenConnector':
            chain.append(wire)
        wire = fitted.connectors[wire]['input']
    return chain


def _free(name: str, fitted: Fitted) -> str:
    numbers = (f'{name}_{number}' for number in range(2, 99))
    names = (name, *numbers)
    return next(free for free in names if free not in fitted.connectors)


def _align_sizes(loss: dict[str, Any], key: str, partner: str, fitted: Fitted) -> None:
    own, other = (
        [shape[2:] for shape in fitted.shapes[wire]] for wire in (loss[key], partner)
    )
    if own == other or len(own) != len(other):
        return
    config = dict(type='ResizeConnector', input=loss[key], like=partner)
    for name, made in fitted.connectors.items():
        if made == config:
            loss[key] = name
            return
    name = _free('resized', fitted)
    fitted.connectors[name] = config
    fitted.shapes[name] = _output_shapes(name, fitted)
    loss[key] = name


def _fit_loss(loss: dict[str, Any], fitted: Fitted, student: Side) -> None:
    """Set the arguments of a loss that depend on shapes and classes."""
    own, other = (fitted.shapes.get(loss[key], []) for key in ('student', 'teacher'))
    widths, goals = [s[1] for s in own], [s[1] for s in other]
    for key, numbers in (
        ('channels', goals),
        ('teacher_channels', goals),
        ('student_channels', widths),
    ):
        if key in loss and numbers:
            loss[key] = numbers if isinstance(loss[key], list) else numbers[0]
    if 'features' in loss:
        loss['student_channels'] = fitted.shapes[loss['features']][0][1]
    if own:
        _set_levels(loss, len(own))
    if 'num_classes' in loss:
        loss['num_classes'] = classes_of(student)
    if 'level_weights' in loss and own:
        given = loss['level_weights']
        loss['level_weights'] = [given[min(i, len(given) - 1)] for i in range(len(own))]


def _fit_source(source: dict[str, Any], student: Side, teacher: Side) -> None:
    if 'classifier' in source:
        source['classifier'] = places(
            (source['classifier'],) * 2, student, teacher, None
        )[0]
    if 'bridges' in source:
        own, other = (side.pyramid('neck')[0].channels for side in (student, teacher))
        for name, widths in (('cross', (own, other)), ('back', (other, own))):
            count = len(source['bridges'][name]['in_channels'])
            source['bridges'][name] |= dict(
                in_channels=[widths[0]] * count, out_channels=widths[1]
            )
    if source['type'] == 'CrossHead':
        _fit_cross_head(source, student, teacher)


def _fit_cross_head(source: dict[str, Any], student: Side, teacher: Side) -> None:
    heads = [side.model.bbox_head for side in (student, teacher)]
    depths = [getattr(head, 'stacked_convs', 4) for head in heads]
    if min(depths) <= source.get('stage', 3):
        source['stage'] = max(1, min(depths) - 1)
    own, other = (getattr(head, 'feat_channels', None) for head in heads)
    if own != other:
        source['projection'] = dict(
            type='ConvConnector', in_channels=own, out_channels=other
        )
