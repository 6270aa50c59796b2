"""Draw what the losses of a step compare: maps and their channels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.observing import Step
from kdtoolbox.losses import CWDLoss
from kdtoolbox.losses.features.cwd import channel_wise_divergence
from kdtoolbox.visualization.grid import Panel
from kdtoolbox.visualization.maps import colour_bar, paint_map
from kdtoolbox.visualization.scenes import Scene, covered_by, map_of, strides_of

CHANNELS = 4
"""Number of channels in the picture of CWD."""


class Picture(NamedTuple):
    """The panels of a picture, and what it shows."""

    rows: list[list[Panel]]
    caption: str


class Level(NamedTuple):
    """The two maps (C, h, w) that a loss compares on one level for one image."""

    number: int
    student: Tensor
    teacher: Tensor


def levels_of(distiller: Distiller, step: Step, name: str, scene: Scene) -> list[Level]:
    """Return the maps that a loss compares, for one image; empty if it compares none.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss.
        scene: The image.
    """
    ends = distiller.wiring.comparisons[name]
    if not {'student', 'teacher'} <= ends.keys():
        return []
    wires = (step.wires[ends['student']], step.wires[ends['teacher']])
    batch, levels = len(step.inputs), []
    for number, pair in enumerate(zip(*wires, strict=False)):
        student, teacher = (map_of(wire, scene, batch) for wire in pair)
        if student is not None and teacher is not None:
            levels.append(Level(number, student, teacher))
    return levels


def draw_features(
    distiller: Distiller, step: Step, name: str, scene: Scene
) -> Picture | None:
    """Draw student, teacher and their difference on each level of a loss.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss.
        scene: The image.

    Returns:
        The rows and a caption, or None if the loss compares no maps.
    """
    rows = []
    for level in levels_of(distiller, step, name, scene):
        sides = dict(student=level.student, teacher=level.teacher)
        maps = {
            f'{side}, {_described(features, level, scene)}': magnitude(features)
            for side, features in sides.items()
        }
        rows.append(draw_row(maps | _difference(level), scene))
    if not rows:
        return None
    return Picture(
        rows,
        f'{loss_line(distiller, name)} Colour: the mean over the channels of the '
        'absolute value, and for the difference of |student - teacher|. All panels of '
        'a row have one colour scale, which begins at 0.',
    )


def magnitude(features: Tensor) -> Tensor:
    """Return the mean absolute value of the channels of a map (C, h, w), as (h, w)."""
    return features.abs().mean(0)


def _difference(level: Level) -> dict[str, Tensor]:
    if level.student.shape != level.teacher.shape:
        return {}
    values = magnitude(level.student - level.teacher)
    return {f'difference, mean {values.mean():.3g}': values}


def draw_row(
    maps: Mapping[str, Tensor], scene: Scene, top: float | None = None
) -> list[Panel]:
    """Return one panel per map, all on one colour scale, and the scale.

    Args:
        maps: Maps (h, w) of values that are not negative, by title.
        scene: The image.
        top: The value of the brightest colour; None for the largest value.
    """
    if top is None:
        top = max(float(values.max()) for values in maps.values())
    panels = []
    for title, values in maps.items():
        covered = covered_by((values.shape[0], values.shape[1]), scene)
        panels.append((title, paint_map(values.numpy(), scene.image, top, covered)))
    return [*panels, ('', colour_bar(panels[0][1], top))]


def _described(features: Tensor, level: Level, scene: Scene) -> str:
    channels, height, width = features.shape
    stride = stride_text(height, width, scene)
    return f'level {level.number}: {stride}, {channels} channels'


def stride_text(height: int, width: int, scene: Scene) -> str:
    """Return the stride in pixels of a map with these sides, as text."""
    return f'stride {max(strides_of((height, width), scene.padded)):.3g}'


def loss_line(distiller: Distiller, name: str) -> str:
    """Return a sentence about a loss: its name, its class and its wires."""
    ends = distiller.wiring.comparisons[name]
    kind = type(distiller.losses[name]).__name__
    return f'{name} ({kind}) compares {ends["student"]} with {ends["teacher"]}.'


def draw_channels(
    distiller: Distiller, step: Step, name: str, scene: Scene
) -> Picture | None:
    """Draw the channels whose distributions differ most, for a CWD loss.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss.
        scene: The image.

    Returns:
        The rows and a caption, or None if the loss is another one.
    """
    loss = distiller.losses[name]
    if not isinstance(loss, CWDLoss):
        return None
    levels = levels_of(distiller, step, name, scene)
    rows = []
    for level, channel, divergence in largest_divergences(levels, loss.tau, CHANNELS):
        student, teacher = (
            _distribution(side[channel], loss.tau)
            for side in (level.student, level.teacher)
        )
        place = f'level {level.number}, channel {channel}'
        maps = {f'student, {place}': student, f'teacher, {place}': teacher}
        maps[f'|difference|, divergence {divergence:.3g}'] = (student - teacher).abs()
        rows.append(draw_row(maps, scene))
    if not rows:
        return None
    return Picture(
        rows,
        f'{loss_line(distiller, name)} These are the {len(rows)} channels with the '
        f'largest divergence, among all levels. Colour: the softmax over the positions '
        f'at temperature {loss.tau:g}, times the number of positions, so that 1 is a '
        'uniform distribution.',
    )


def largest_divergences(
    levels: Sequence[Level], tau: float, count: int
) -> list[tuple[Level, int, float]]:
    """Return the channels with the largest divergence of CWD, the largest first.

    Args:
        levels: The levels of a loss for one image.
        tau: The temperature of the loss.
        count: Number of channels at most.

    Returns:
        For each its level, its index and its divergence. The mean of all divergences
        of a level is the unweighted loss of the level.
    """
    found = []
    for level in levels:
        pairs = zip(level.student, level.teacher, strict=True)
        for channel, (student, teacher) in enumerate(pairs):
            value = channel_wise_divergence(
                student[None, None], teacher[None, None], tau
            )
            found.append((level, channel, float(value)))
    return sorted(found, key=lambda item: item[2], reverse=True)[:count]


def _distribution(values: Tensor, tau: float) -> Tensor:
    return values.numel() * (values / tau).flatten().softmax(0).reshape(values.shape)
