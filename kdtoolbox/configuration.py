"""Read a config from a file, a package (``mmdet::...``) or a dict."""

import difflib
from importlib import metadata, util
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as config_utils


def _cure_mmseg_inheritance() -> None:
    """Let ``_base_ = 'mmseg::...'`` work where mmseg comes from the maintained fork.

    mmengine looks for the distribution ``mmsegmentation``; the fork's has another
    name, so that mmengine refuses it, or pip-installs the original over it.
    """
    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        if util.find_spec('mmseg') is not None:
            config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def _package_file(source: str) -> Path:
    package, _, name = source.partition('::')
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f'{source!r}: the package {package!r} is not installed')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    path = root / name
    if not path.is_file():
        names = [str(found.relative_to(root)) for found in root.rglob('*.py')]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        raise ValueError(
            f'{source!r}: {package} has no such config; close: '
            + (', '.join(f'{package}::{match}' for match in close) or 'none')
        )
    return path


def load_config(source: str | Path | dict | Config) -> Config:
    """Return the config that ``source`` names.

    Args:
        source: A file, ``package::path`` below that package's configs, or the config
            itself as a dict.

    Raises:
        ValueError: If the package or its config does not exist; it lists near names.
        FileNotFoundError: If the file does not exist.

    Example:
        >>> load_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py').model.type
        'GFL'
    """
    _cure_mmseg_inheritance()
    if isinstance(source, Config):
        return source
    if isinstance(source, dict):
        return Config(dict(source))
    path = _package_file(str(source)) if '::' in str(source) else Path(source)
    return Config.fromfile(path)
