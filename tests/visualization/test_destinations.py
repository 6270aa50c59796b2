import os
from pathlib import Path
from typing import Any

import pytest
from mmdet.engine.hooks import DetVisualizationHook
from mmengine.config import Config
from mmengine.visualization import LocalVisBackend
from mmseg.engine.hooks import SegVisualizationHook

from kdtoolbox.visualization import paint_into, pictures_in


@pytest.mark.parametrize('kind', ['DetVisualizationHook', DetVisualizationHook])
def test_mmdet_writes_pictures_directly_into_the_folder(kind: Any) -> None:
    scope = 'mmdet' if isinstance(kind, str) else None
    hooks = dict(visualization=dict(type=kind))
    visualizer = dict(type='DetLocalVisualizer', vis_backends=[])
    cfg = dict(default_scope=scope, default_hooks=hooks, visualizer=visualizer)
    paint_into(config := Config(cfg), 'a/b', show=True)
    assert config.default_hooks.visualization.test_out_dir == os.path.abspath('a/b')


@pytest.mark.parametrize('kind', ['SegVisualizationHook', SegVisualizationHook])
@pytest.mark.parametrize('local', ['LocalVisBackend', LocalVisBackend, None])
def test_mmseg_writes_pictures_directly_into_the_folder(kind: Any, local: Any) -> None:
    board = dict(type='TensorboardVisBackend')
    backends = [board, dict(type=local)] if local else [board]
    config = Config(
        dict(
            default_scope='mmseg' if isinstance(kind, str) else None,
            default_hooks=dict(visualization=dict(type=kind)),
            visualizer=dict(type='SegLocalVisualizer', vis_backends=backends),
        )
    )
    paint_into(config, 'a/b')
    first, second = config.visualizer.vis_backends
    assert first == board
    assert second.img_save_dir == os.path.abspath('a/b')
    with pytest.raises(ValueError, match='leave out --show or --show-dir'):
        paint_into(config, 'a/b', show=True)


def test_pictures_need_a_visualizer() -> None:
    hooks = dict(visualization=dict(type='DetVisualizationHook'))
    with pytest.raises(ValueError, match='visualizer = dict'):
        paint_into(Config(dict(default_hooks=hooks)), 'a')


def test_a_rewritten_picture_counts_as_new(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    path = tmp_path / 'a/b.png'
    path.touch()
    before = pictures_in(tmp_path)
    assert list(before) == [path]
    os.utime(path, ns=(0, 0))
    assert pictures_in(tmp_path) != before
    assert not pictures_in(tmp_path / 'none')
