"""Seed the samples of a run, and repeat their augmentation for cached teachers."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from kdtoolbox.configuration import load_config
from kdtoolbox.inspection.recipe_checks import name_of, types_in
from kdtoolbox.teachers.kinds import named_teachers, place_of
from kdtoolbox.teachers.record_cache import check_views


def seed_samples(cfg: Config) -> None:
    """Make all random numbers of the data loader depend on the seed alone.

    With a cached teacher, each image gets the views of its cache in turn.

    Args:
        cfg: The config of a run, whose sampler gets replaced.

    Raises:
        ValueError: If caches differ in their views, or augmentation cannot be repeated.
    """
    views = cached_views(cfg)
    if views is not None:
        for fault in unrepeatable(cfg):
            raise fault
    sampler = cfg.train_dataloader.sampler
    if sampler.type == 'kdtoolbox.SeededSampler':
        sampler = sampler.sampler
    cfg.train_dataloader.sampler = dict(
        type='kdtoolbox.SeededSampler', sampler=sampler, views=views
    )


def cached_views(cfg: Config) -> int | None:
    """Return the number of augmentations of each image; None without a cache.

    Raises:
        ValueError: If the caches of several teachers differ in it.

    Example:
        >>> teacher = dict(config='gfl.py', cache=dict(path='caches/gfl', views=4))
        >>> cached_views(Config(dict(model=dict(teacher=teacher))))
        4
    """
    found = {place: cache.get('views') for place, cache in caches_of(cfg)}
    for place, views in found.items():
        check_views(views, place)
    if len({*found.values()}) > 1:
        told = ', '.join(f'{place}.views={views}' for place, views in found.items())
        raise ValueError(
            f'{told}: all teachers see one augmentation of an image; set equal `views`'
        )
    return next(iter(found.values()), None)


def caches_of(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of the ``cache`` of each teacher that has one."""
    model = cfg.get('model') or {}
    teacher, teachers = model.get('teacher'), model.get('teachers')
    for name, config in named_teachers(teacher, teachers).items():
        cache = config.get('cache') if isinstance(config, Mapping) else None
        if isinstance(cache, Mapping):
            yield f'{place_of(name, teachers is None)}.cache', cache


def unrepeatable(cfg: Config) -> Iterator[ValueError]:
    """Yield a fault for each part of a recipe whose randomness no seed repeats."""
    advice = (
        'the images of a pass never come again and a cache of the teacher would never '
        'be read'
    )
    for place, kind in types_in(cfg.train_dataloader, 'train_dataloader'):
        if name_of(kind).startswith('Cached'):
            yield ValueError(
                f'{place}.type: {kind!r} mixes an image with those before it, so '
                f'{advice}; write {name_of(kind).removeprefix("Cached")!r} without '
                'the keys of its own cache, or remove `cache` of the teacher'
            )
    student: Any = cfg.model.get('student')
    parts = {
        'model.student': load_config(student) if isinstance(student, str) else student,
        'data_preprocessor': cfg.get('data_preprocessor'),
    }
    for part in parts:
        for place, kind in types_in(parts[part], part):
            if name_of(kind) == 'BatchSyncRandomResize':
                yield ValueError(
                    f'{place}.type: {kind!r} draws a size for several iterations, so '
                    f'{advice}; remove it from `batch_augments`, or remove `cache` of '
                    'the teacher'
                )
