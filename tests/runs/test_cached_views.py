from typing import Any

import pytest
from mmengine.config import Config

from kdtoolbox.runs.cached_views import seed_samples


def config(teacher: dict | None = None, **parts: Any) -> Config:
    loader = dict(dataset=dict(pipeline=[]), sampler=dict(type='InfiniteSampler'))
    model = dict(student=dict(type='GFL'), teacher=teacher or dict(config='gfl.py'))
    return Config(dict(dict(model=model, train_dataloader=loader), **parts))


def cache(views: Any = 4) -> dict:
    return dict(config='gfl.py', cache=dict(path='caches/gfl', views=views))


def test_the_sampler_gets_the_views_of_the_cache() -> None:
    for teacher, views in ((None, None), (cache(), 4)):
        cfg = config(teacher)
        for _ in range(2):
            # The second time as from a dumped config.
            seed_samples(cfg)
            sampler = cfg.train_dataloader.sampler
            assert sampler.type == 'kdtoolbox.SeededSampler'
            assert sampler.sampler == dict(type='InfiniteSampler')
            assert sampler.views == views
    # A cache that is removed by an option leaves no views.
    cfg.model.teacher.cache = None
    seed_samples(cfg)
    assert cfg.train_dataloader.sampler.views is None


def test_several_caches_need_equal_views() -> None:
    teachers = dict(a=cache(4), b=cache(4), c=dict(config='gfl.py'))
    cfg = config(model=dict(student={}, teachers=teachers))
    seed_samples(cfg)
    assert cfg.train_dataloader.sampler.views == 4
    teachers['b'] = cache(2)
    cfg = config(model=dict(student={}, teachers=teachers))
    message = r'model.teachers.a.cache.views=4, model.teachers.b.cache.views=2: .*equal'
    with pytest.raises(ValueError, match=message):
        seed_samples(cfg)


@pytest.mark.parametrize('views', [None, 0, '4'])
def test_views_have_to_be_a_number(views: Any) -> None:
    with pytest.raises(ValueError, match='model.teacher.cache.views: expected'):
        seed_samples(config(cache(views)))


def test_augmentation_that_never_repeats_is_refused() -> None:
    mosaic = dict(dataset=dict(pipeline=[dict(type='mmdet.CachedMosaic')]))
    loader = dict(mosaic, sampler=dict(type='InfiniteSampler'))
    sizes = dict(batch_augments=[dict(type='BatchSyncRandomResize')])
    resized = dict(student=dict(data_preprocessor=sizes), teacher=cache())
    for parts, message in (
        (dict(train_dataloader=loader), r"pipeline\[0\].type: .*write 'Mosaic'"),
        (dict(model=resized), r'model.student.data_preprocessor.batch_augments\[0\]'),
        (dict(data_preprocessor=sizes), r'^data_preprocessor.batch_augments\[0\]'),
    ):
        with pytest.raises(ValueError, match=message):
            seed_samples(config(cache(), **parts))
        plain = dict(parts, model=dict(parts.get('model', {}), teacher={}))
        seed_samples(config(**plain))
