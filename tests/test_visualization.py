import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import LocalVisBackend
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from PIL import Image

from kdtoolbox.visualization import (
    draw_map,
    draw_sample,
    paint_into,
    pictures_in,
    save_panels,
)

IMAGE = np.full((32, 48, 3), 90, np.uint8)


def test_a_box_is_drawn_where_it_is() -> None:
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('digit',), palette=[(255, 0, 0)])
    boxes = torch.tensor([[4.0, 4.0, 20.0, 28.0]])
    instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0]), scores=torch.tensor([0.9])
    )
    sample = DetDataSample(pred_instances=instances)
    drawn = draw_sample(visualizer, IMAGE, sample, scale=4)
    assert drawn.shape == (128, 192, 3)
    assert np.any(drawn[30:100, 16] != 90)
    assert np.all(drawn[:, 100:] == 90)
    assert torch.equal(sample.pred_instances.bboxes, boxes)


def test_a_label_map_is_drawn_where_it_is() -> None:
    visualizer = SegLocalVisualizer(alpha=1.0)
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[[9, 9, 9], [200, 0, 0]])
    labels = torch.zeros(1, 32, 48, dtype=torch.long)
    labels[:, 16:] = 1
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    drawn = draw_sample(visualizer, IMAGE, sample, truth=True, scale=2)
    assert drawn.shape == (64, 96, 3)
    assert (drawn[2, 2] == 9).all()
    assert (drawn[-2, -2] == (200, 0, 0)).all()
    assert sample.gt_sem_seg.data.shape == (1, 32, 48)


def test_a_map_is_bright_where_it_is_active() -> None:
    feature = torch.zeros(4, 8, 12)
    feature[:, 2, 3] = 5.0
    drawn = draw_map(feature, IMAGE, scale=2)
    assert drawn.shape == (64, 96, 3)
    # Red is high, blue is low.
    assert drawn[20, 28, 0] > drawn[60, 90, 0]


def test_panels_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / 'panels.png'
    save_panels([[('a', IMAGE), ('b', IMAGE)], [('c', IMAGE)]], path)
    assert Image.open(path).size[0] > 400
    assert list(tmp_path.iterdir()) == [path]


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
