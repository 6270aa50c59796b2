"""Check the config of a distillation before anything is built."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry as MMEngineRegistry

from kdtoolbox import registry
from kdtoolbox.configuration import Report, check_keys, did_you_mean, refuse
from kdtoolbox.teachers.kinds import named_teachers, place_of, teacher_faults

_REGISTRIES = [
    kind for kind in vars(registry).values() if isinstance(kind, MMEngineRegistry)
]
_REGISTRIES = [kind for kind in _REGISTRIES if kind.scope == 'kdtoolbox']

_SOURCES = {
    'ClassifierDistiller': "dict(type='ClassifierWeights', classifier=...)",
    'CrossKDDistiller': "dict(type='CrossHead', stage=..., projection=...)",
    'FCFDDistiller': (
        "dict(type='RoIResponses'), dict(type='BridgedRoIs', bridges=...)"
    ),
    'PreActivationDistiller': "dict(type='PreActivations')",
    'QueryDistiller': "dict(type='ObjectQueries')",
    'RoIDistiller': "dict(type='RoIResponses')",
}
"""The sources that replace the removed subclasses of `Distiller`."""

_SWITCHES = ('PipelineSwitchHook', 'YOLOXModeSwitchHook')
"""Hooks of mmdet that change the training pipeline."""


def check_recipe(cfg: Config, report: Report = refuse) -> None:
    """Check that types have the right scope and that every key is known.

    Args:
        cfg: The config of a run. A plain config of mmdet or mmseg passes.
        report: Gets all faults. By default the first is raised.

    Raises:
        ValueError: If a type of kdtoolbox lacks the scope ``kdtoolbox.``, if the model
            is a distiller that was replaced by sources, or if keys of the student are
            beside ``student``, because ``_delete_=True`` is missing.
        TypeError: If a key of the model or of its teacher is unknown or missing.
    """
    for fault in _faults_of(cfg):
        report(fault)


def _faults_of(cfg: Config) -> Iterator[Exception]:
    model: Any = cfg.get('model') or {}
    removed = [*_removed(model.get('type'))]
    yield from removed or _unknown(model.get('type'))
    for place, kind in _types(cfg):
        if _needs_scope(kind):
            yield ValueError(
                f'{place}.type: {kind!r} is a type of kdtoolbox and not of '
                f"{cfg.get('default_scope')}; add `kdtoolbox.`: type='kdtoolbox.{kind}'"
            )
    yield from _switches(cfg)
    kind = class_of(scoped(model.get('type')))
    if kind is None:
        return
    strays = {*_strays(model, kind)}
    if strays:
        yield ValueError(
            f'model: {sorted(strays)} are keys of the student, inherited from its '
            f'config; a {kind.__name__} keeps them under `student`. Add '
            '`_delete_=True,` as the first line of `model = dict(...)`, with '
            '`student=_base_.model`'
        )
    own = {k: v for k, v in model.items() if k not in {'type', *strays}}
    try:
        check_keys(own, kind, 'model')
    except TypeError as error:
        yield error
    yield from _teacher_faults(model, kind)


def _switches(cfg: Config) -> Iterator[ValueError]:
    """Yield a fault for each hook that brings labels back to images without any."""
    read = types_in(cfg.get('train_dataloader'), 'train_dataloader')
    if not any(name_of(kind) == 'ImageFolder' for _, kind in read):
        return
    for place, kind in types_in(cfg.get('custom_hooks'), 'custom_hooks'):
        if name_of(kind) in _SWITCHES:
            yield ValueError(
                f'{place}.type: {kind!r} changes the pipeline '
                'for the last epochs, as the labels of its detector need it, and '
                'ImageFolder has no labels; write `custom_hooks = [...]` without it'
            )


def name_of(kind: Any) -> str:
    """Return the name of a type without its scope."""
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def _teacher_faults(model: Mapping[str, Any], kind: type) -> Iterator[Exception]:
    if 'teacher' not in inspect.signature(kind).parameters:
        return
    teacher, teachers = model.get('teacher'), model.get('teachers')
    try:
        named = named_teachers(teacher, teachers)
    except ValueError as error:
        yield error
        return
    for name, config in named.items():
        yield from teacher_faults(config, place_of(name, teachers is None))


def _unknown(kind: Any) -> Iterator[ValueError]:
    is_ours = isinstance(kind, str) and kind.startswith('kdtoolbox.')
    if is_ours and class_of(kind) is None:
        known = [f'kdtoolbox.{name}' for name in registry.MODELS.module_dict]
        yield ValueError(
            f'model.type: kdtoolbox has no {kind.partition(".")[2]!r}'
            f'{did_you_mean(kind, known)}'
        )


def _removed(kind: Any) -> Iterator[ValueError]:
    name = kind.removeprefix('kdtoolbox.') if isinstance(kind, str) else ''
    if name in _SOURCES:
        yield ValueError(
            f'model.type: kdtoolbox has no {name} any more; its wires come from '
            f"sources: write type='kdtoolbox.Distiller' and sources=[{_SOURCES[name]}]"
        )


def scoped(kind: Any) -> Any:
    """Return a type with the scope ``kdtoolbox.`` if it lacks it."""
    return f'kdtoolbox.{kind}' if _needs_scope(kind) else kind


def _types(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield the types that are looked up by scope, with their config paths."""
    yield 'model', (cfg.get('model') or {}).get('type')
    yield from types_in(cfg.get('custom_hooks'), 'custom_hooks')
    for key in ('default_hooks', 'optim_wrapper', 'train_dataloader', 'val_dataloader'):
        yield from types_in(cfg.get(key), key)


def types_in(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the ``type`` of each dict in a part of a config, with its config path."""
    if isinstance(value, Mapping):
        yield place, value.get('type')
        for key, child in value.items():
            yield from types_in(child, f'{place}.{key}')
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from types_in(child, f'{place}[{index}]')


def _needs_scope(kind: Any) -> bool:
    """Return whether a type is registered by kdtoolbox and lacks its scope."""
    if not isinstance(kind, str) or '.' in kind:
        return False
    for own in _REGISTRIES:
        own.import_from_location()
        if kind in own.module_dict:
            return True
    return False


def class_of(kind: Any) -> type | None:
    """Return the class of a type of kdtoolbox with its scope; None for others."""
    if isinstance(kind, str):
        scope, _, name = kind.rpartition('.')
        registry.MODELS.import_from_location()
        kind = registry.MODELS.module_dict.get(name) if scope == 'kdtoolbox' else None
    is_ours = inspect.isclass(kind) and kind.__module__.startswith('kdtoolbox.')
    return kind if is_ours else None


def _strays(model: Mapping[str, Any], kind: type) -> list[str]:
    """Return the keys of the student beside ``student``; none if all are typos."""
    known = {'type', '_scope_', *inspect.signature(kind).parameters}
    parts = [key for key in model if key not in known]
    typos = [key for key in parts if difflib.get_close_matches(key, known, n=1)]
    return [] if len(typos) == len(parts) else parts
