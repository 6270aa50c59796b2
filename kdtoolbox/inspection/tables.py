"""The rows of the tables that describe a config: modules, wires and differences."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mmengine.model import BaseModel
from torch import Tensor

from kdtoolbox.datasets.head_labels import class_heads
from kdtoolbox.distillers.building import SIDES
from kdtoolbox.inspection.batches import image_channels
from kdtoolbox.inspection.faults import Examination
from kdtoolbox.inspection.models import features_of
from kdtoolbox.inspection.outline import Layer, Outline
from kdtoolbox.teachers.normalization import swaps_channels

_NO_HEADS = ('data_preprocessor', 'backbone', 'neck')


class ModuleRow(NamedTuple):
    """A module of a model in one forward.

    Attributes:
        path: Its path.
        kind: The name of its class.
        calls: How often it was called.
        outputs: The shapes of its outputs.
        strides: The stride of each output, None where it is no map.
    """

    path: str
    kind: str
    calls: int
    outputs: list[tuple[int, ...]]
    strides: list[float | None]


def module_rows(
    found: Outline, depth: int = 2, pattern: str | None = None
) -> list[ModuleRow]:
    """Return the modules down to a depth, or all that match a pattern.

    Args:
        found: The outline of the model.
        depth: Number of components of the longest paths.
        pattern: A part of the paths, or a glob for one; `depth` then does not count.
    """
    return [
        _row(path, layer, found)
        for path, layer in found.layers.items()
        if path and _wanted(path, depth, pattern)
    ]


def _wanted(path: str, depth: int, pattern: str | None) -> bool:
    if pattern is None:
        return path.count('.') < depth
    return fnmatchcase(path, f'*{pattern}*')


def _row(path: str, layer: Layer, found: Outline) -> ModuleRow:
    shapes = [value.shape for value in layer.outputs]
    strides = [found.stride(shape) for shape in shapes]
    return ModuleRow(path, layer.kind, layer.calls, shapes, strides)


class WireRow(NamedTuple):
    """What a recorder, a connector or a loss reads or makes at one level.

    Attributes:
        name: Its config path below ``model``.
        level: The level; None where there are no tensors.
        student: The shape on the student's side.
        teacher: The shape on the teacher's side; of a connector what it returns.
        verdict: 'fits', 'not tried', or the numbers of its faults.
    """

    name: str
    level: int | None
    student: tuple[int, ...] | None
    teacher: tuple[int, ...] | None
    verdict: str


def wire_rows(found: Examination) -> list[WireRow]:
    """Return the recorders, connectors and losses of a distillation, level by level."""
    parts = found.parts
    if parts is None:
        return []
    several = [name for name in parts.names if name not in SIDES]
    names = dict.fromkeys(n for side in parts.named for n in parts.named[side])
    rows: list[WireRow] = []
    for name in names:
        wires = [f'{s}.{name}' for s in parts.named if name in parts.named[s]]
        for row, both in _pairs(name, wires, bool(several)):
            places = [f'recorders.{wire}' for wire in both if wire in wires]
            done = all(wire in found.trial.wires for wire in both if wire in wires)
            rows += _levels(row, both, found, places, done)
    for name, ends in parts.connections.items():
        place, wires = f'connectors.{name}', [ends.get('input', ''), name]
        rows += _levels(place, wires, found, [place], name in found.trial.wires)
    for name, ends in parts.comparisons.items():
        place, wires = f'losses.{name}', [ends.get(side, '') for side in SIDES]
        rows += _levels(place, wires, found, [place], name in found.trial.compared)
    return rows


def _pairs(
    name: str, wires: list[str], several: bool
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of a row and the wires of its two columns."""
    if not several:
        yield f'recorders.*.{name}', [f'{side}.{name}' for side in SIDES]
        return
    for wire in wires:
        columns = [wire, ''] if wire.startswith('student.') else ['', wire]
        yield f'recorders.{wire}', columns


def _levels(
    name: str, wires: Sequence[str], found: Examination, places: list[str], done: bool
) -> Iterator[WireRow]:
    numbers = [n for place in places for n in found.faults.numbers(f'model.{place}')]
    faults = ', '.join(map(str, sorted({*numbers})))
    verdict = f'fault {faults}' if faults else 'fits' if done else 'not tried'
    levels = [found.trial.wires.get(wire, []) for wire in wires]
    count = max(map(len, levels))
    if not count:
        yield WireRow(name, None, None, None, verdict)
    for level in range(count):
        shapes = [tuple(x[level].shape) if level < len(x) else None for x in levels]
        yield WireRow(name, level, shapes[0], shapes[1], verdict)


def differences(found: Examination) -> list[tuple[str, str, str]]:
    """Return what differs between the two models: its name and both values."""
    if found.parts is None or {*found.models} != {*SIDES}:
        return []
    path = features_of(*found.models.values())
    student, teacher = (
        _properties(found.models[side], found.outlines[side], path) for side in SIDES
    )
    return [
        (key, student[key], teacher[key])
        for key in student
        if student[key] != teacher[key]
    ]


def _properties(model: BaseModel, found: Outline, path: str) -> dict[str, str]:
    maps = [v.shape for v in found.layers[path].outputs if len(v.shape) == 4]
    heads = {
        name: type(part).__name__
        for name, part in model.named_children()
        if name not in _NO_HEADS
    }
    preprocessor = model.data_preprocessor
    return {
        'classes': _listed(
            {n: getattr(head, 'num_classes', '?') for n, head in class_heads(model)}
        ),
        'input channels': str(image_channels(model)),
        'mean': _numbers(getattr(preprocessor, 'mean', None)),
        'std': _numbers(getattr(preprocessor, 'std', None)),
        'bgr_to_rgb': str(swaps_channels(preprocessor)),
        f'strides of {path}': ', '.join(f'{found.stride(shape):g}' for shape in maps),
        f'channels of {path}': ', '.join(str(shape[1]) for shape in maps),
        'backbone': type(getattr(model, 'backbone', None)).__name__,
        'neck': type(getattr(model, 'neck', None)).__name__,
        'heads': _listed(heads),
    }


def _listed(values: dict[str, Any]) -> str:
    return ', '.join(f'{name}: {value}' for name, value in values.items())


def _numbers(values: Any) -> str:
    if not isinstance(values, Tensor):
        return 'none'
    return ', '.join(f'{value:g}' for value in values.flatten().tolist())
