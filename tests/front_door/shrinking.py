"""The changes that let a recipe run in seconds, as ``--cfg-options`` has them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from kdtoolbox.configuration import load_config
from kdtoolbox.teachers.models import build_model

_SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'border', 'stride')
_SIZES += ('random_size_range',)
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def shrink(path: Path, folder: Path) -> list[str]:
    """Return changes of sizes, lengths, batches, workers and weights to fetch.

    Args:
        path: The recipe.
        folder: Takes configs and weights of teachers that are made for this.
    """
    cfg = load_config(path)
    changes = {**_lengths(cfg), **_weights(cfg, folder)}
    # Scenes of digits are small as they are.
    factor = 1 if path.parent.name in ('digits', 'pretrain') else _factor(cfg)
    for loader in _LOADERS:
        if cfg.get(loader) is None:
            continue
        changes |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
        changes |= dict(_sizes(cfg[loader].dataset, f'{loader}.dataset', factor))
        changes |= dict(_scales(cfg, loader))
    changes['train_dataloader.batch_size'] = 2
    if '::' in cfg.model.get('teacher', {}).get('config', ''):
        changes |= _small_teacher(cfg, folder, factor)
    changes |= dict(_sizes(cfg.model, 'model', factor, inside=False))
    return [f'{key}={_text(value)}' for key, value in changes.items()]


def _small_teacher(cfg: Config, folder: Path, factor: int) -> dict[str, Any]:
    """Return the change that names a teacher with fewer layers of the same widths."""
    base = cfg.model.teacher.config
    model = load_config(base).model
    changes = {}
    if model.backbone.get('depth') == 101:
        changes['backbone'] = dict(depth=50)
    if model.backbone.type == 'SwinTransformer':
        changes['backbone'] = dict(depths=[2, 2, 2, 2])
    if 'student' not in cfg.model and 'size' in model.data_preprocessor:
        # Tokens are trained on images that the teacher's preprocessor makes.
        size = _divided(model.data_preprocessor.size, factor)
        changes['data_preprocessor'] = dict(size=size)
    if not changes:
        return {}
    path = folder / f'{Path(cfg.filename).stem}_teacher.py'
    path.write_text(f"_base_ = '{base}'\nmodel = {changes}\n")
    return {'model.teacher.config': str(path)}


def _factor(cfg: Config) -> int:
    """Return by how much sizes are divided."""
    # Path aggregation wants sides that 32 divides, and these have 640.
    return 10 if _student(cfg).get('type') in ('RTMDet', 'YOLOX') else 8


def _scales(cfg: Config, loader: str) -> Iterator[tuple[str, Any]]:
    """Yield scales at which the maps have a cell for each query that DINO chooses."""
    if _student(cfg).get('num_queries', 0) <= 200:
        return
    for place, value in _sizes(cfg[loader].dataset, f'{loader}.dataset', 8):
        if place.endswith('.scale'):
            yield place, (360, 216)
        elif place.endswith('.scales'):
            yield place, [(360, 216)] * len(value)


def _student(cfg: Config) -> Any:
    return cfg.model.get('student', cfg.model)


def _lengths(cfg: Config) -> dict[str, Any]:
    changes = {'default_hooks.logger.interval': 1}
    if 'max_epochs' in cfg.train_cfg or cfg.train_cfg.get('by_epoch'):
        changes |= {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
        changes['default_hooks.checkpoint.interval'] = 1
    else:
        changes |= {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2}
        changes['default_hooks.checkpoint.interval'] = 2
    return changes


def _weights(cfg: Config, folder: Path) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    model = cfg.model
    if 'teacher' in model:
        changes |= {'model.teacher.checkpoint': None}
        changes |= {'model.teacher.allow_random': True}
    if model.get('teacher', {}).get('type') == 'FoundationTeacher':
        changes |= {'model.teacher.model': 'transformers::dinov2'}
        changes |= {'model.teacher.pretrained': False}
        small = dict(hidden_size=384, num_attention_heads=6)
        sizes = small if 'small' in model.teacher.model else {}
        for key, value in dict(num_hidden_layers=2, **sizes).items():
            changes[f'model.teacher.arguments.{key}'] = value
    if model.get('student', {}).get('type') == 'YOLOX':
        changes['model.teacher.checkpoint'] = _calm_weights(cfg, folder)
    for name, loss in model.get('losses', {}).items():
        if 'tokens' in loss:
            changes |= {f'model.losses.{name}.tokens': None}
            changes |= {f'model.losses.{name}.allow_random': True}
    student, place = model.get('student', model), 'model.student'
    place = place if 'student' in model else 'model'
    if student.get('pretrained'):
        changes[f'{place}.pretrained'] = None
    for part in ('backbone', 'neck'):
        for key in ('pretrained', 'init_cfg'):
            if (student.get(part) or {}).get(key):
                changes[f'{place}.{part}.{key}'] = None
    return changes


def _calm_weights(cfg: Config, folder: Path) -> str:
    """Return random weights whose batch norms have seen some features.

    In evaluation mode the features of a deep CSPDarknet explode without.
    """
    config = cfg.model.teacher.config
    path = folder / f'{Path(config).stem}_calm.pth'
    if not path.exists():
        model = build_model(config).train()
        for _ in range(20):
            with torch.no_grad():
                model.extract_feat(torch.rand(2, 3, 64, 64) * 255)
        torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def _sizes(
    value: Any, place: str, factor: int, inside: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yield each size in a config with its place, divided.

    In a model only its preprocessor and its way to test know sizes of images.
    """
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, child in items:
        name = f'{place}.{key}'
        if inside and key in _SIZES and _is_size(child):
            yield name, _divided(child, factor)
        elif isinstance(child, Mapping | list):
            known = inside or key in ('data_preprocessor', 'test_cfg')
            yield from _sizes(child, name, factor, known)


def _is_size(value: Any) -> bool:
    if isinstance(value, int):
        return value > 8
    return isinstance(value, list | tuple) and all(_is_size_or_border(v) for v in value)


def _is_size_or_border(value: Any) -> bool:
    return _is_size(value) or (isinstance(value, int) and value < 0)


def _divided(value: Any, factor: int) -> Any:
    if isinstance(value, int):
        return value // factor if value > 0 else -(-value // factor)
    return type(value)(_divided(part, factor) for part in value)


def _text(value: Any) -> str:
    return str(value).replace(' ', '')
