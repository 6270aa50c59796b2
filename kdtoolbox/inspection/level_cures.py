"""Find the recorders of the levels that two wires have in common."""

from collections.abc import Mapping, Sequence

from kdtoolbox.inspection.context import Context, Shape
from kdtoolbox.inspection.record_cures import as_glob
from kdtoolbox.recorders import find_modules


def same_levels(
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
    if len(kept[0]) != len(kept[1]) or not lines:
        return [f'{told}; record the same levels on both sides'], [], []
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
