"""The digest of a config with all files it names; part of tools/run_benchmark.py."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jobs import ROOT
from mmengine.config import Config

from kdtoolbox.configuration import load_config


def hash_of(config: Config) -> str:
    """Return the digest of a config, its teachers and its weights.

    It does not depend on where the repository is.
    """
    content = {k: v for k, v in config.to_dict().items() if k != 'work_dir'}
    text = json.dumps(_with_files(content), sort_keys=True, default=_name)
    return hashlib.sha256(text.replace(f'{ROOT}/', '').encode()).hexdigest()


def _with_files(value: Any, key: str = '') -> Any:
    """Return a value with the content of the files in place of their paths."""
    if isinstance(value, dict):
        return {k: _with_files(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_files(item) for item in value]
    if isinstance(value, str) and key == 'checkpoint' and Path(value).is_file():
        return _digest(value)
    if isinstance(value, str) and key == 'config':
        try:
            return load_config(value).to_dict().get('model')
        except ValueError:
            # A foundation model has a name in place of a config.
            return value
    return value


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _name(value: Any) -> str:
    module = getattr(value, '__module__', type(value).__module__)
    return f'{module}.{getattr(value, "__qualname__", value)}'
