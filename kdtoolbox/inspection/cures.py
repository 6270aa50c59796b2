"""Find the lines to paste into a recipe whose losses or connectors fail."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from mmengine.registry import MODELS

from kdtoolbox.datasets.head_labels import class_heads
from kdtoolbox.distillers.building import find_class
from kdtoolbox.inspection.outline import Outline
from kdtoolbox.inspection.parts import Parts, features_of
from kdtoolbox.inspection.record_cures import as_glob
from kdtoolbox.losses.examples import Sizes, examples_of
from kdtoolbox.recorders import find_modules

Shape = tuple[int, ...]


@dataclass
class Context:
    """What is known about a distillation that was tried.

    Attributes:
        model: The ``model`` of the config.
        parts: Its parts.
        outlines: The outlines of both models, by side.
        shapes: The shapes of each wire that was made.
        advised: The name of each connector that a cure has made.
    """

    model: Mapping[str, Any]
    parts: Parts
    outlines: Mapping[str, Outline]
    shapes: Mapping[str, Sequence[Shape]]
    advised: dict[str, str] = field(default_factory=dict)

    def name(self, kind: str, connector: str) -> str:
        """Return a free name for a connector: the same one for the same connector."""
        taken = {*(self.model.get('connectors') or {}), *self.advised.values()}
        names = (f'{kind}_{i}' if i > 1 else kind for i in count(1))
        free = next(name for name in names if name not in taken)
        return self.advised.setdefault(connector, free)


def loss_cure(name: str, problem: str, context: Context) -> str:
    """Return the lines that mend a loss which cannot compare its wires, or ''."""
    ends = context.parts.comparisons[name]
    if 'student' not in ends or 'teacher' not in ends:
        return ''
    wires = [ends['student'], ends['teacher']]
    student, teacher = (list(context.shapes[wire]) for wire in wires)
    lines: list[str] = []
    if 'boxes' in problem:
        return (
            f"losses=dict({name}=dict(_delete_=True, type='CWDLoss', "
            f"student='{wires[0]}', teacher='{wires[1]}'))  # reads no boxes"
        )
    if {len(shape) for shape in student + teacher} == {3, 4}:
        return _maps_from_tokens(name, wires, len(student[0]) == 3, context)
    if len(student) != len(teacher):
        lines, student, teacher = _same_levels(wires, student, teacher, context)
        if not student:
            return '\n'.join(lines)
    if any(len(shape) != 4 for shape in student + teacher):
        return ''
    counts = _classes_of(context)
    if counts and all(
        {shape[1] for shape in shapes} == {number}
        for shapes, number in zip((student, teacher), counts, strict=True)
    ):
        path = features_of(*context.parts.models.values())
        return (
            f'take a teacher of the {counts[0]} classes of the student, or distil '
            f"features, which need no classes: record '{path}' on both sides"
        )
    lines += _aligned(name, wires, student, teacher, context)
    lines += _arguments(name, student, teacher, context)
    return '\n'.join(lines)


def type_cure(problem: str) -> str:
    """Return the type of mmdet or mmseg that was meant by an unknown one, or ''."""
    found = re.search(r'(\w+) is not in the (\w+)::model registry', problem)
    if found is None or found[2] not in MODELS.children:
        return ''
    scope = MODELS.children[found[2]]
    scope.import_from_location()
    close = difflib.get_close_matches(found[1], scope.module_dict, n=1)
    return f"did you mean type='{close[0]}'?" if close else ''


def _classes_of(context: Context) -> list[int]:
    """Return the numbers of classes of both models if they differ."""
    counts = [
        next((h.num_classes for _, h in class_heads(m) if hasattr(h, 'num_classes')), 0)
        for m in context.parts.models.values()
    ]
    return counts if all(counts) and len({*counts}) > 1 else []


def _maps_from_tokens(
    name: str, wires: Sequence[str], of_student: bool, context: Context
) -> str:
    """Return a connector that makes maps of the wire with tokens (N, L, C)."""
    side = 'student' if of_student else 'teacher'
    source, like = wires if of_student else wires[::-1]
    connector = f"dict(type='TokenConnector', input='{source}', like='{like}')"
    made = context.name('maps', connector)
    read = f"losses=dict({name}=dict({side}='{made}'))"
    return f'connectors=dict({made}={connector})\n{read}'


def _same_levels(
    wires: Sequence[str],
    student: list[Shape],
    teacher: list[Shape],
    context: Context,
) -> tuple[list[str], list[Shape], list[Shape]]:
    """Return the recorders of the levels that both wires have, and their shapes."""
    sizes = [[shape[2:] for shape in shapes] for shapes in (student, teacher)]
    common = [size for size in sizes[0] if size in sizes[1]]
    told = f'{wires[0]} has {len(student)} levels, {wires[1]} {len(teacher)}'
    if not common or any(not size for size in common):
        return [f'{told}, and no level has the same height and width'], [], []
    lines, kept = [], []
    for side, wire, shapes, own in zip(
        ('student', 'teacher'), wires, (student, teacher), sizes, strict=True
    ):
        chosen = [index for index, size in enumerate(own) if size in common]
        kept.append([shapes[index] for index in chosen])
        if len(chosen) < len(shapes):
            lines.append(_levels_line(side, wire, chosen, context))
    lines[0] = f'{told}; record those of one stride: {lines[0]}'
    return lines, kept[0], kept[1]


def _levels_line(side: str, wire: str, chosen: list[int], context: Context) -> str:
    name = wire.partition('.')[2]
    recorder = context.parts.named[side].get(name)
    path = recorder.get('source') if isinstance(recorder, Mapping) else recorder
    outline = context.outlines.get(side)
    places = f'levels {chosen} of {wire}'
    if path is None or outline is None or wire.partition('.')[0] != side:
        return places
    modules = [*find_modules(context.parts.models[side], path, '')]
    values = [
        (module, value)
        for module in modules
        for value in outline.layers[module].outputs
    ]
    if len(values) != len(context.shapes[wire]):
        return places
    makers = []
    for index in chosen:
        module, value = values[index]
        inside = outline.makers(value.number, module)
        # The last one called is the outermost, and the nearest to the whole.
        makers.append(inside[-1] if inside else module)
    glob = as_glob(makers)
    return f"recorders=dict({side}=dict({name}='{glob}'))" if glob else places


def _aligned(
    name: str,
    wires: Sequence[str],
    student: Sequence[Shape],
    teacher: Sequence[Shape],
    context: Context,
) -> list[str]:
    """Return connectors that give the student's maps the shapes of the teacher's."""
    config = context.model['losses'][name]
    examples = examples_of(find_class(config['type'], ''))
    free = ' '.join(example.teacher or '' for example in examples)
    connectors, wire = [], wires[0]
    widths = [[shape[1] for shape in shapes] for shapes in (student, teacher)]
    if widths[0] != widths[1] and 'channels' not in free:
        if len({*widths[1]}) > 1:
            return [
                f'the teacher has levels of {widths[1]} channels: record one level per '
                'wire, with a ConvConnector and a loss for each'
            ]
        own = (context.model.get('connectors') or {}).get(wire, {})
        if own.get('type') == 'ConvConnector' and len(student) == len(widths[1]):
            return [f'connectors=dict({wire}=dict(out_channels={widths[1][0]}))']
        inside = widths[0][0] if len({*widths[0]}) == 1 else widths[0]
        connector = (
            f"dict(type='ConvConnector', input='{wire}', in_channels={inside}, "
            f'out_channels={widths[1][0]})'
        )
        wire = context.name('aligned', connector)
        connectors.append(f'{wire}={connector}')
    sizes = [[shape[2:] for shape in shapes] for shapes in (student, teacher)]
    if sizes[0] != sizes[1] and 'size' not in free:
        connector = f"dict(type='ResizeConnector', input='{wire}', like='{wires[1]}')"
        wire = context.name('resized', connector)
        connectors.append(f'{wire}={connector}')
    if not connectors:
        return []
    return [
        f'connectors=dict({", ".join(connectors)})',
        f"losses=dict({name}=dict(student='{wire}'))",
    ]


def _arguments(
    name: str, student: Sequence[Shape], teacher: Sequence[Shape], context: Context
) -> list[str]:
    """Return the arguments of a loss that disagree with its wires, corrected."""
    config = context.model['losses'][name]
    right = right_arguments(config['type'], student, teacher)
    wrong = {
        key: value
        for key, value in right.items()
        if key in config and config[key] != value
    }
    if not wrong:
        return []
    text = ', '.join(f'{key}={value}' for key, value in wrong.items())
    return [f'losses=dict({name}=dict({text}))']


def right_arguments(
    kind: Any, student: Sequence[Shape], teacher: Sequence[Shape]
) -> dict[str, Any]:
    """Return the arguments of a loss that follow from the shapes of its maps."""
    [example, *_] = examples_of(find_class(kind, ''))
    free = 'channels' in (example.teacher or '')
    sizes = Sizes(
        levels=tuple((shape[2], shape[3]) for shape in student),
        # Other losses read maps that were aligned with the teacher's.
        channels=(student if free else teacher)[0][1],
        teacher_channels=teacher[0][1],
    )
    others = [
        replace(sizes, channels=sizes.channels + 1),
        replace(sizes, teacher_channels=sizes.teacher_channels + 1),
        replace(sizes, levels=(*sizes.levels, (1, 1))),
    ]
    right = example.arguments(sizes)
    varied = [example.arguments(other) for other in others]
    return {
        key: value
        for key, value in right.items()
        if any(arguments.get(key) != value for arguments in varied)
    }


def connector_cure(name: str, context: Context) -> str:
    """Return the arguments of a connector that disagree with its input, corrected."""
    config = context.model['connectors'][name]
    shapes = context.shapes.get(context.parts.connections[name].get('input', ''), ())
    if not shapes or any(len(shape) < 3 for shape in shapes):
        return ''
    if {len(shape) for shape in shapes} == {3} and config['type'] != 'TokenConnector':
        source = context.parts.connections[name]['input']
        connector = f"dict(type='TokenConnector', input='{source}')"
        made = context.name('maps', connector)
        return f"connectors=dict({made}={connector}, {name}=dict(input='{made}'))"
    widths = [shape[1] for shape in shapes]
    channels = widths[0] if len({*widths}) == 1 else widths
    right = dict(in_channels=channels, channels=channels, num_levels=len(shapes))
    wrong = {k: v for k, v in right.items() if k in config and config[k] != v}
    text = ', '.join(f'{key}={value}' for key, value in wrong.items())
    return f'connectors=dict({name}=dict({text}))' if text else ''
