"""Find the lines to paste into a recipe whose losses fail."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdtoolbox.datasets.head_labels import class_heads
from kdtoolbox.distillers.building import find_class
from kdtoolbox.inspection.context import Context, Shape
from kdtoolbox.inspection.level_cures import same_levels
from kdtoolbox.inspection.models import features_of
from kdtoolbox.losses.examples import Sizes, examples_of


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
        lines, student, teacher = same_levels(wires, student, teacher, context)
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
