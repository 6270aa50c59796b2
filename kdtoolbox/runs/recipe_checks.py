"""Check the config of a distillation before anything is built."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry as MMEngineRegistry

from kdtoolbox import registry
from kdtoolbox.configuration import check_keys
from kdtoolbox.teacher import Teacher

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


def check_recipe(cfg: Config) -> None:
    """Check that types have the right scope and that every key is known.

    Args:
        cfg: The config of a run. A plain config of mmdet or mmseg passes.

    Raises:
        ValueError: If a type of kdtoolbox lacks the scope ``kdtoolbox.``, if the model
            is a distiller that was replaced by sources, or if keys of the student are
            beside ``student``, because ``_delete_=True`` is missing.
        TypeError: If a key of the model or of its teacher is unknown or missing.
    """
    _check_removed((cfg.get('model') or {}).get('type'))
    for place, kind in _types(cfg):
        if _needs_scope(kind):
            raise ValueError(
                f'{place}.type: {kind!r} is a type of kdtoolbox and not of '
                f"{cfg.get('default_scope')}; add `kdtoolbox.`: type='kdtoolbox.{kind}'"
            )
    model: Any = cfg.get('model') or {}
    kind = _class_of(model.get('type'))
    if kind is None:
        return
    _check_deleted(model, kind)
    check_keys({k: v for k, v in model.items() if k != 'type'}, kind, 'model')
    check_keys(model.teacher, Teacher, 'model.teacher')


def _check_removed(kind: Any) -> None:
    name = kind.removeprefix('kdtoolbox.') if isinstance(kind, str) else ''
    if name in _SOURCES:
        raise ValueError(
            f'model.type: kdtoolbox has no {name} any more; its wires come from '
            f"sources: write type='kdtoolbox.Distiller' and sources=[{_SOURCES[name]}]"
        )


def _types(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield the types that are looked up by scope, with their config paths."""
    yield 'model', (cfg.get('model') or {}).get('type')
    yield from _nested(cfg.get('custom_hooks'), 'custom_hooks')
    for key in ('default_hooks', 'optim_wrapper', 'train_dataloader', 'val_dataloader'):
        yield from _nested(cfg.get(key), key)


def _nested(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield place, value.get('type')
        for key, child in value.items():
            yield from _nested(child, f'{place}.{key}')
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _nested(child, f'{place}[{index}]')


def _needs_scope(kind: Any) -> bool:
    """Return whether a type is registered by kdtoolbox and lacks its scope."""
    if not isinstance(kind, str) or '.' in kind:
        return False
    for own in _REGISTRIES:
        own.import_from_location()
        if kind in own.module_dict:
            return True
    return False


def _class_of(kind: Any) -> type | None:
    """Return the class of ``model.type`` if kdtoolbox defines it."""
    if isinstance(kind, str):
        scope, _, name = kind.rpartition('.')
        registry.MODELS.import_from_location()
        kind = registry.MODELS.module_dict.get(name) if scope == 'kdtoolbox' else None
    is_ours = inspect.isclass(kind) and kind.__module__.startswith('kdtoolbox.')
    return kind if is_ours else None


def _check_deleted(model: Mapping[str, Any], kind: type) -> None:
    known = {'type', '_scope_', *inspect.signature(kind).parameters}
    parts = [key for key in model if key not in known]
    if any(not difflib.get_close_matches(key, known, n=1) for key in parts):
        raise ValueError(
            f'model: {sorted(parts)} are keys of the student, inherited from its '
            f'config; a {kind.__name__} keeps them under `student`. Add '
            '`_delete_=True,` as the first line of `model = dict(...)`, with '
            '`student=_base_.model`'
        )
