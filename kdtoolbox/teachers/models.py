"""Build a model of mmdet or mmseg from its config."""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope

from kdtoolbox.configuration import check_keys, load_config


def build_model(
    source: str | dict,
    data_preprocessor: dict | None = None,
    where: str = 'model.student',
) -> BaseModel:
    """Build the model of a config in that config's own scope.

    Args:
        source: A source for ``load_config``: a whole config, or its ``model`` alone.
        data_preprocessor: Used if the config sets none. mmengine's Runner takes it from
            the top level of its config.
        where: Config path of ``source``, for error messages.

    Raises:
        ValueError: If a file does not exist.
        TypeError: If the config contains no model, or an unknown argument of the model.
    """
    cfg = load_config(source, where)
    scope = cfg.get('default_scope')
    if scope is None:
        current = DefaultScope.get_current_instance()
        scope = current.scope_name if current is not None else None
    # Detectors change the configs of their heads while they are built.
    model = copy.deepcopy(dict(cfg.get('model', cfg), _scope_=scope))
    _check_model(model, where)
    preprocessor = cfg.get('data_preprocessor') or data_preprocessor
    if preprocessor is not None:
        model.setdefault('data_preprocessor', preprocessor)
    try:
        return MODELS.build(model)
    except TypeError as error:
        unknown = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
            str(error),
        )
        kind, key = unknown.groups() if unknown else ('', '')
        for place, part in _parts(model, where):
            if key in part and str(part['type']).endswith(kind):
                _check_model({'_scope_': scope, **part}, place)
                raise TypeError(f'{place}: {error}') from error
        raise TypeError(f'{where}: {error}') from error


def _parts(config: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all parts of a model that have a type, with their config paths."""
    if isinstance(config, list | tuple):
        for index, part in enumerate(config):
            yield from _parts(part, f'{where}[{index}]')
    elif isinstance(config, Mapping):
        if 'type' in config:
            yield where, config
        for name, part in config.items():
            yield from _parts(part, f'{where}.{name}')


def _check_model(model: Mapping[str, Any], where: str) -> None:
    kind = model.get('type')
    if kind is None:
        keys = [key for key in model if key != '_scope_']
        raise TypeError(
            f'{where}: expected a config with `model`, or a model with `type`, got a '
            f'dict of {keys}; write a path, dict(_base_=path, model=dict(...)) to '
            'change some of it, or the whole model'
        )
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(model['_scope_']) as registry:
            kind = registry.get(kind)
    # For an unknown type the registry itself raises a clear error.
    if kind is not None:
        check_keys({k: v for k, v in model.items() if k != 'type'}, kind, where)
