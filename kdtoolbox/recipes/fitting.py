"""Fit the records, connectors and losses of a shipped recipe to two other models."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from kdtoolbox.datasets.head_labels import class_heads
from kdtoolbox.distillers.graph import running_order
from kdtoolbox.recipes.connecting import align_wires, fit_connector, set_levels
from kdtoolbox.recipes.fitted import Fitted, connections_of, source_of
from kdtoolbox.recipes.places import is_logits, places
from kdtoolbox.recipes.sides import Side
from kdtoolbox.recipes.templates import Template, class_of, kinds_of


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
    for name in running_order(connections_of(fitted)):
        fit_connector(name, fitted)
    for loss in fitted.losses.values():
        align_wires(loss, fitted)
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
                yield source_of(loss[key], fitted)


def classes_of(side: Side) -> int | None:
    """Return the number of classes of a model's head, if it is known."""
    heads = (head for _, head in class_heads(side.model))
    return next((x.num_classes for x in heads if hasattr(x, 'num_classes')), None)


def _check_classes(fitted: Fitted, student: Side, teacher: Side) -> None:
    kinds = {k for loss in fitted.losses.values() for k in kinds_of(loss).values()}
    numbers = [classes_of(student), classes_of(teacher)]
    if any('logits' in kind for kind in kinds) and numbers[0] != numbers[1]:
        raise ValueError(
            f'the method compares class logits, and the student has {numbers[0]} '
            f'classes, the teacher {numbers[1]}; choose a method that learns from '
            'features, such as --method pkd or cwd with --at neck, backbone or head'
        )


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
        set_levels(loss, len(own))
    if 'num_classes' in loss:
        loss['num_classes'] = classes_of(student)
    defaults = inspect.signature(class_of(loss)).parameters
    if 'level_weights' in defaults and own:
        given = loss.get('level_weights', defaults['level_weights'].default)
        if len(given) != len(own):
            # The last factor is that of the coarsest maps.
            kept = [given[min(i, len(given) - 1)] for i in range(len(own))]
            loss['level_weights'] = kept


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
