"""Compute the factor on a loss weight from the progress of the training."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdtoolbox.configuration import check_keys, did_you_mean
from kdtoolbox.losses.arguments import check_at_least


def constant(
    at: float, /, *, begin: int, end: int | None = None, factor: float = 1.0
) -> float:
    """Return `factor`."""
    return factor


def linear(
    at: float, /, *, begin: int, end: int, start: float = 0.0, stop: float = 1.0
) -> float:
    """Return the value on the line from `start` at `begin` to `stop` at `end`."""
    return start + (stop - start) * (at - begin) / (end - begin)


def cosine(
    at: float, /, *, begin: int, end: int, start: float = 1.0, stop: float = 0.0
) -> float:
    """Return the value on half a cosine from `start` to `stop`."""
    done = (1 - math.cos(math.pi * (at - begin) / (end - begin))) / 2
    return start + (stop - start) * done


def step(
    at: float,
    /,
    *,
    begin: int,
    milestones: Sequence[int],
    end: int | None = None,
    gamma: float = 0.1,
    start: float = 1.0,
) -> float:
    """Return `start`, multiplied by `gamma` at each milestone."""
    return start * gamma ** sum(at >= milestone for milestone in milestones)


def stop(at: float, /, *, begin: int) -> float:
    """Return 0."""
    return 0.0


_KINDS: dict[str, Callable[..., float]] = dict(
    constant=constant, linear=linear, cosine=cosine, step=step, stop=stop
)


def factor_at(phases: Sequence[Mapping[str, Any]], progress: int) -> float:
    """Return the factor on the configured weight after ``progress`` steps.

    Between two phases and after the last, the value at the end of a phase remains.
    Before the first phase, the value at its begin holds; before a ``stop`` it is 1.

    Args:
        phases: The phases, as `read_schedule` returns them.
        progress: Number of iterations or epochs since the start of the training.

    Example:
        >>> warm = dict(kind='linear', end=4)
        >>> phases = read_schedule([warm, dict(kind='stop', begin=6)], 'schedule')
        >>> [factor_at(phases, progress) for progress in range(8)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.0, 0.0]
    """
    begun = [phase for phase in phases if phase['begin'] <= progress]
    if not begun and phases[0]['kind'] == 'stop':
        return 1.0
    phase = begun[-1] if begun else phases[0]
    at = max(phase['begin'], min(progress, phase.get('end', math.inf)))
    arguments = {key: value for key, value in phase.items() if key != 'kind'}
    return _KINDS[phase['kind']](at, **arguments)


def read_schedule(schedule: Sequence[Mapping[str, Any]], where: str) -> list[dict]:
    """Check a schedule and return its phases with their begins.

    Kinds of phases and their keys:

    - ``constant``: ``factor`` (1).
    - ``linear``: from ``start`` (0) at ``begin`` to ``stop`` (1) at ``end``.
    - ``cosine``: from ``start`` (1) to ``stop`` (0) along half a cosine.
    - ``step``: ``start`` (1), multiplied by ``gamma`` (0.1) at each of ``milestones``.
    - ``stop``: 0 from ``begin`` on; only as the last phase.

    ``begin`` is by default the end of the phase before, or 0. ``end`` is required for
    ``linear`` and ``cosine``, and for a phase before one without ``begin``.
    ``begin``, ``end`` and ``milestones`` count from the start of the training.

    Args:
        schedule: The phases in the order of their begins.
        where: Config path of the schedule, for errors.

    Raises:
        ValueError: If the schedule is empty, a kind is unknown, two phases overlap, a
            length is not positive, a factor is negative, or a milestone lies outside
            of its phase.
        TypeError: If a phase has unknown keys or lacks some.

    Example:
        >>> read_schedule([dict(kind='linear', end=5), dict(kind='constant')], 'here')
        [{'kind': 'linear', 'end': 5, 'begin': 0}, {'kind': 'constant', 'begin': 5}]
    """
    if not isinstance(schedule, Sequence) or isinstance(schedule, str) or not schedule:
        raise ValueError(
            f'{where}: expected a list of phases, got {schedule!r}; write '
            "[dict(kind='linear', begin=0, end=500)]"
        )
    phases: list[dict] = []
    for index, phase in enumerate(schedule):
        place = f'{where}[{index}]'
        before = phases[-1] if phases else dict(end=0)
        phases.append(_read_phase(phase, before, place))
    return phases


def _read_phase(phase: Any, before: Mapping[str, Any], where: str) -> dict:
    kind = phase.get('kind') if isinstance(phase, Mapping) else None
    if kind not in _KINDS:
        raise ValueError(
            f'{where}: expected a dict with a known `kind`, got {phase!r}'
            f'{did_you_mean(str(kind), _KINDS)}'
        )
    # `end=None` in a config means the same as no `end`.
    given = {key: value for key, value in phase.items() if value is not None}
    if 'begin' not in given and 'end' in before:
        given['begin'] = before['end']
    arguments = {key: value for key, value in given.items() if key != 'kind'}
    check_keys(arguments, _KINDS[kind], where)
    _check_span(given, before, where)
    _check_numbers(given, where)
    return given


def _check_span(phase: Mapping[str, Any], before: Mapping, where: str) -> None:
    begin, end = phase['begin'], phase.get('end')
    if not all(isinstance(x, int) for x in (begin, 0 if end is None else end)):
        raise TypeError(
            f'{where}: expected whole numbers as begin and end, got {begin!r} and '
            f'{end!r}'
        )
    if begin < 0 or (end is not None and end <= begin):
        raise ValueError(
            f'{where}: expected 0 <= begin < end, got begin={begin} and end={end}; '
            'both count from the start of the training'
        )
    if before.get('kind') == 'stop':
        raise ValueError(f'{where} follows a stop; remove one of the two')
    latest = before.get('end', before.get('begin', -1) + 1)
    if begin < latest:
        raise ValueError(
            f'{where} begins at {begin}, before the previous phase ends; write '
            f'begin={latest} or more'
        )


def _check_numbers(phase: Mapping[str, Any], where: str) -> None:
    numbers = ('factor', 'start', 'stop', 'gamma')
    check_at_least(where, 0, **{key: phase[key] for key in numbers if key in phase})
    milestones = phase.get('milestones', [])
    if not isinstance(milestones, list | tuple):
        raise TypeError(f'{where}: write milestones=[{milestones}]')
    low, high = phase['begin'], phase.get('end', math.inf)
    ordered = all(a < b for a, b in zip(milestones, milestones[1:], strict=False))
    if not ordered or not all(low < x < high for x in milestones):
        raise ValueError(
            f'{where}: expected rising milestones between begin={low} and end={high}, '
            f'got {milestones}'
        )
