"""Choose where the hooks of mmdet and mmseg write their pictures."""

import inspect
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS


def paint_into(cfg: Config, folder: str, show: bool = False) -> None:
    """Change a config so that its test writes the pictures directly into a folder.

    By themselves, mmdet's hook puts a relative folder below the work dir, and mmseg's
    hook makes subfolders of its own.

    Args:
        cfg: A config of mmdet or mmseg with a visualization hook; changed in place.
        folder: Absolute path, or relative to the working folder.
        show: Whether the hook also shows the pictures.

    Raises:
        ValueError: If there is no visualizer, or the hook cannot both show and write.
    """
    if not cfg.get('visualizer'):
        raise ValueError(
            '--show-dir needs a visualizer; add '
            "`visualizer = dict(type='DetLocalVisualizer')` or SegLocalVisualizer"
        )
    hook, folder = cfg.default_hooks.visualization, os.path.abspath(folder)
    kind = _class_of(hook.type, cfg.get('default_scope'))
    if kind is not None and 'test_out_dir' in inspect.signature(kind).parameters:
        hook.test_out_dir = folder
        return
    if show:
        raise ValueError(
            f'{hook.type} shows pictures or writes them; leave out --show or --show-dir'
        )
    backends = [backend for backend in cfg.visualizer.get('vis_backends') or []]
    local = [backend for backend in backends if _is_local(backend.get('type'))]
    if not local:
        local = [dict(type='mmengine.LocalVisBackend')]
        backends += local
    for backend in local:
        backend['img_save_dir'] = folder
    cfg.visualizer.vis_backends = backends


def pictures_in(folder: str | os.PathLike) -> dict[Path, int]:
    """Return all files below a folder with the time of their last change."""
    files = (path for path in Path(folder).rglob('*') if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def _class_of(kind: Any, scope: str | None) -> Any:
    if not isinstance(kind, str):
        return kind
    with HOOKS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def _is_local(kind: Any) -> bool:
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'LocalVisBackend'
