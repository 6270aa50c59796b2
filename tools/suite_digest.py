"""The digest of a config with all files it names; part of tools/run_benchmark.py."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jobs import ROOT
from mmengine.config import Config

from kdtoolbox.configuration import load_config

WEIGHTS = ('checkpoint', 'pretrained', 'load_from', 'tokens')
"""The keys of configs that name files of weights."""


def hash_of(config: Config, gpus: int = 1) -> str:
    """Return the digest of a config, its teachers and its weights.

    It does not depend on where the repository is.

    Args:
        config: The config.
        gpus: The number of GPUs; a step has the images of all of them.
    """
    content = {k: v for k, v in config.to_dict().items() if k != 'work_dir'}
    if gpus > 1:
        content['gpus'] = gpus
    text = json.dumps(_with_files(content), sort_keys=True, default=_name)
    return hashlib.sha256(text.replace(f'{ROOT}/', '').encode()).hexdigest()


def forget_files() -> None:
    """Let the next digest read all files anew."""
    _model_of.cache_clear()
    _digest.cache_clear()


def _with_files(value: Any, key: str = '') -> Any:
    """Return a value with the content of the files in place of their paths."""
    if isinstance(value, dict):
        return {k: _with_files(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_files(item) for item in value]
    if isinstance(value, str) and key in WEIGHTS and Path(value).is_file():
        return _digest(value)
    if isinstance(value, str) and key in ('config', 'student'):
        return _model_of(value)
    return value


def weights_of(config: Config) -> list[str]:
    """Return the names of the weights with which a training begins."""
    return [*_weights(dict(model=config.model, load_from=config.get('load_from')))]


def _weights(value: Any, key: str = '') -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _weights(child, name)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _weights(child)
    elif key in WEIGHTS and isinstance(value, str):
        yield value


def missing_weights(config: Config) -> str:
    """Return which file of weights does not exist; empty if all do."""
    local = (name for name in weights_of(config) if '://' not in name)
    missing = next((name for name in local if not Path(name).exists()), '')
    return missing and f'there are no weights {missing}, which its config names'


@cache
def _model_of(config: str) -> Any:
    try:
        return load_config(config).to_dict().get('model')
    except ValueError:
        # A foundation model has a name in place of a config.
        return config


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _name(value: Any) -> str:
    module = getattr(value, '__module__', type(value).__module__)
    return f'{module}.{getattr(value, "__qualname__", value)}'
