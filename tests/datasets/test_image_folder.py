import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

from kdtoolbox.datasets.image_folder import ImageFolder
from kdtoolbox.datasets.inspection import check_dataset
from kdtoolbox.datasets.reading import read_sample

LOAD = dict(type='LoadImageFromFile')
FLIP = dict(type='RandomFlip', prob=1.0)
PIPELINES = dict(
    mmdet=[
        LOAD,
        dict(type='RandomResize', scale=(96, 64), ratio_range=(0.8, 1.2)),
        dict(type='RandomCrop', crop_size=(32, 32)),
        FLIP,
        dict(type='PhotoMetricDistortion'),
        dict(type='PackDetInputs'),
    ],
    mmseg=[
        LOAD,
        dict(type='RandomResize', scale=(96, 64), ratio_range=(0.8, 1.2)),
        dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=1.0),
        FLIP,
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ],
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of five images in several folders, with other files."""
    root = tmp_path / 'images'
    for name in ('b.png', 'a/z.JPG', 'a/c/1.bmp', 'a/c/10.webp', 'a/c/2.tif'):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((48, 64, 3), len(name), dtype=np.uint8)
        assert cv2.imwrite(str(path), image)
    for name in ('labels.json', 'a/.hidden.png', '.trash/d.png', 'a/notes.png.txt'):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    return root


def build(root: Path | str, scope: str = 'mmdet', **changes: Any) -> Any:
    with DefaultScope.overwrite_default_scope(scope):
        config = dict(type='kdtoolbox.ImageFolder', data_root=str(root), **changes)
        return DATASETS.build(config)


def names(dataset: Any, root: Path) -> list[str]:
    paths = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    return [os.path.relpath(path, root) for path in paths]


def test_images_of_all_folders_come_in_the_order_of_their_paths(root: Path) -> None:
    dataset = build(root)
    assert names(dataset, root) == [
        *('a/c/1.bmp', 'a/c/10.webp', 'a/c/2.tif'),
        *('a/z.JPG', 'b.png'),
    ]
    assert names(build(root, indices=2), root) == ['a/c/1.bmp', 'a/c/10.webp']
    assert names(build(f'{root}/'), root) == names(dataset, root)
    assert names(pickle.loads(pickle.dumps(dataset)), root) == names(dataset, root)


def test_links_are_followed_once(root: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    other.mkdir()
    (root / 'b.png').rename(other / 'b.png')
    (root / 'linked').symlink_to(other)
    (root / 'file.png').symlink_to(other / 'b.png')
    (other / 'up').symlink_to(root)
    assert names(build(root), root)[-2:] == ['file.png', 'linked/b.png']
    assert len(build(root)) == 6


@pytest.mark.parametrize('scope', PIPELINES)
def test_samples_pass_the_transforms_of_both_libraries(root: Path, scope: str) -> None:
    dataset = build(root, scope, pipeline=PIPELINES[scope])
    check_dataset(dataset, 'train_dataloader.dataset')
    for index in range(len(dataset)):
        sample = read_sample(dataset, index)
        assert tuple(sample['inputs'].shape) == (3, 32, 32)
        meta = sample['data_samples'].metainfo
        assert meta['img_shape'] == (32, 32)
        assert meta['img_path'] == dataset.get_data_info(index)['img_path']
        assert meta['flip']
        assert len(sample['data_samples'].get('gt_instances', [])) == 0


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / 'b.png').write_bytes(b'no image')
    dataset = build(root, pipeline=PIPELINES['mmdet'])
    read_sample(dataset, 0)
    with pytest.raises(ValueError, match=r'images/b\.png: .*remove the damaged file'):
        read_sample(dataset, 4)


@pytest.mark.parametrize('scope', PIPELINES)
def test_labels_are_not_there_to_load(root: Path, scope: str) -> None:
    pipeline = [LOAD, dict(type='LoadAnnotations'), *PIPELINES[scope][1:]]
    with pytest.raises(ValueError, match='no annotations, and LoadAnnotations in its'):
        build(root, scope, pipeline=pipeline)


def test_a_missing_or_empty_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder '.*/imagse', looked for"):
        build(tmp_path / 'imagse')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'empty and its subfolders contain no image'):
        build(tmp_path / 'empty')
    with pytest.raises(ValueError, match='there is no folder'):
        ImageFolder(str(root / 'b.png'))
