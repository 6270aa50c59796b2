"""Correct what a config certainly meant, so that faults behind a typo are found."""

import difflib
import inspect
import re
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from kdtoolbox.distillers import Distiller, Pretrainer, TokenTrainer
from kdtoolbox.inspection.recipe_checks import class_of, scoped
from kdtoolbox.inspection.reports import Fault
from kdtoolbox.teachers import MMEngineTeacher
from kdtoolbox.teachers.kinds import OPTIONS

_MEANT = {
    r"model\.(\S+): no wire '.*'; did you mean '(.+)'\?": '{}',
    r"model\.(\S+): kdtoolbox has no '.*'; did you mean '(.+)'\?": '{}.type',
    r"model\.(\S+): expected a number, got the text '(.+)'; .*": '{}',
}
"""For each message with one certain correction the key that it corrects."""

_RECORDED = re.compile(
    r"(?:did you mean .*\? )?recorders=dict\(\w+=dict\(\w+='([^']+)'\)\)"
)


def mended(model: Mapping[str, Any], faults: Iterable[Fault]) -> dict[str, Any] | None:
    """Return a copy of a model's config without its typos, or None if it has none.

    Args:
        model: The ``model`` of a config.
        faults: Its faults.

    Example:
        >>> model = dict(losses=dict(loss_a=dict(student='student.fnp')))
        >>> told = "model.losses.loss_a.student: no wire 'student.fnp'; did you mean "
        >>> mended(model, [Fault(told + "'student.fpn'?")])
        {'losses': {'loss_a': {'student': 'student.fpn'}}}
    """
    found = dict(entry for fault in faults for entry in _corrections(fault))
    if not found:
        return None
    copy = deepcopy(dict(model))
    for path, value in found.items():
        _set(copy, path, value)
    return copy


def _corrections(fault: Fault) -> Iterable[tuple[str, Any]]:
    for pattern, key in _MEANT.items():
        match = re.fullmatch(pattern, fault.problem)
        if match:
            yield key.format(match[1]), _value(match[2], 'number' in pattern)
    place = fault.problem.partition(': ')[0].removeprefix('model.')
    match = _RECORDED.fullmatch(fault.cure)
    if match and place.startswith('recorders.') and 'gradient' not in fault.problem:
        yield place, match[1]


def _value(text: str, is_number: bool) -> Any:
    try:
        return literal_eval(text) if is_number else text
    except (SyntaxError, ValueError):
        return text


def _set(config: Any, path: str, value: Any) -> None:
    *parents, key = path.split('.')
    for parent in parents:
        if not isinstance(config, Mapping) or parent not in config:
            return
        config = config[parent]
    if isinstance(config, dict):
        known = config.get(key)
        config[key] = dict(known, source=value) if isinstance(known, dict) else value


def meant(config: Any, target: Callable) -> Any:
    """Return a config whose mistyped keys are renamed to those that were meant.

    The typo is a fault already; all that is below the key is examined as well.
    """
    if not isinstance(config, Mapping):
        return config
    known = [key for key in inspect.signature(target).parameters if key not in config]
    renamed = {}
    for key, value in config.items():
        given = key in inspect.signature(target).parameters or key == 'type'
        # A distant name is no typo: what is below it would get faults of its own.
        close = [] if given else difflib.get_close_matches(key, known, 1, cutoff=0.7)
        renamed[close[0] if close else key] = value
    if 'teacher' in renamed:
        teacher = renamed['teacher']
        if isinstance(teacher, Mapping) and 'type' not in teacher:
            options = {key: teacher[key] for key in teacher if key in OPTIONS}
            own = {key: teacher[key] for key in teacher if key not in OPTIONS}
            renamed['teacher'] = meant(own, MMEngineTeacher) | options
    return renamed


def kind_of(name: Any) -> type | None:
    """Return the class of kdtoolbox that a type means, without scope or with a typo."""
    if isinstance(name, str) and name.startswith('kdtoolbox.'):
        kinds = (Distiller, Pretrainer, TokenTrainer)
        known = [f'kdtoolbox.{kind.__name__}' for kind in kinds]
        [name] = difflib.get_close_matches(name, known, n=1) or [name]
    return class_of(scoped(name))
