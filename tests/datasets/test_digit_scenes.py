import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask

from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.datasets.digit_drawing import (
    BACKGROUND,
    IGNORE,
    TRAIN_SCANS,
    TUNING_SCANS,
)
from kdtoolbox.registry import DATASETS

TRAIN, VAL = 12, 6


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'digits'
    assert make_digit_scenes(root, train=TRAIN, val=VAL, workers=1)
    return root


def coco(root: Path, split: str) -> dict:
    return json.loads((root / f'annotations/instances_{split}2017.json').read_text())


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(
    root: Path, tmp_path: Path
) -> None:
    make_digit_scenes(tmp_path / 'again', train=TRAIN, val=VAL, workers=2)
    make_digit_scenes(tmp_path / 'other', train=TRAIN, val=VAL, workers=1, seed=1)
    assert digests(tmp_path / 'again') == digests(root)
    assert digests(tmp_path / 'other') != digests(root)


def test_both_layouts_show_the_same_scenes(root: Path) -> None:
    for split, length in (('train', TRAIN), ('val', VAL)):
        assert len(coco(root, split)['images']) == length
        for index in range(length):
            left = f'leftImg8bit/{split}/digits/digits_{index:06d}_000000'
            image = (root / f'{split}2017/{index:012d}.png').read_bytes()
            assert (root / f'{left}_leftImg8bit.png').read_bytes() == image


def test_validation_uses_no_scan_of_the_training(root: Path) -> None:
    scans = {
        split: {digit['scan'] for digit in coco(root, split)['annotations']}
        for split in ('train', 'val')
    }
    assert max(scans['train']) < TRAIN_SCANS <= min(scans['val'])


def test_boxes_areas_and_label_maps_follow_the_masks(root: Path) -> None:
    content = coco(root, 'train')
    for image in content['images']:
        digits = [a for a in content['annotations'] if a['image_id'] == image['id']]
        assert 2 <= len(digits) <= 4
        stem = f'gtFine/train/digits/digits_{image["id"]:06d}_000000_gtFine'
        labels = cv2.imread(str(root / f'{stem}_labelTrainIds.png'), 0)
        expected = np.full((128, 128), BACKGROUND, np.uint8)
        masks = [coco_mask.decode(digit['segmentation']) for digit in digits]
        for mask in masks:
            border = cv2.dilate(mask, np.ones((3, 3), np.uint8)) - mask
            expected[border == 1] = IGNORE
        for digit, mask in zip(digits, masks, strict=True):
            expected[mask == 1] = digit['category_id'] - 1
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert digit['bbox'] == pytest.approx(box)
            assert digit['area'] == mask.sum()
        np.testing.assert_array_equal(labels, expected)
        raw = cv2.imread(str(root / f'{stem}_labelIds.png'), 0)
        np.testing.assert_array_equal(raw, np.where(labels == IGNORE, 0, labels + 1))


def test_mmdet_reads_the_coco_layout(root: Path) -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='mmdet.CocoDataset',
                data_root=str(root),
                ann_file='annotations/instances_val2017.json',
                data_prefix=dict(img='val2017/'),
                metainfo=dict(classes=tuple('0123456789')),
                pipeline=[],
            )
        )
    assert len(dataset) == VAL
    labels = [i['bbox_label'] for i in dataset.get_data_info(0)['instances']]
    found = [a for a in coco(root, 'val')['annotations'] if a['image_id'] == 0]
    assert labels == [annotation['category_id'] - 1 for annotation in found]


def test_mmseg_reads_the_cityscapes_layout(root: Path) -> None:
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(
            dict(
                type='kdtoolbox.DigitScenesDataset',
                data_root=str(root),
                data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
                pipeline=[dict(type='LoadAnnotations')],
            )
        )
    assert len(dataset) == VAL
    labels = dataset[0]['gt_seg_map']
    assert set(np.unique(labels)) <= {*range(11), IGNORE}


def test_a_folder_with_other_parameters_is_not_overwritten(root: Path) -> None:
    before = digests(root)
    assert not make_digit_scenes(root, train=TRAIN, val=VAL)
    with pytest.raises(ValueError, match='exists with other content'):
        make_digit_scenes(root, PRESETS['seg'], train=TRAIN, val=VAL)
    assert digests(root) == before


def test_a_failed_generation_leaves_nothing(tmp_path: Path) -> None:
    crowded = replace(PRESETS['det'], digit_size=(100, 120), count=(6, 6))
    with pytest.raises(ValueError, match='lower `digit_size` or `count`'):
        make_digit_scenes(tmp_path / 'digits', crowded, train=1, val=1, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('size', [(64, 96), (200, 120), (600, 1000)])
def test_scenes_of_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    style = replace(PRESETS['det'], size=size)
    root = tmp_path / 'digits'
    make_digit_scenes(root, style, train=2, val=1, workers=1)
    for image in coco(root, 'train')['images']:
        assert (image['height'], image['width']) == size
        name = f'train2017/{image["file_name"]}'
        assert cv2.imread(str(root / name)).shape == (*size, 3)
    for label in root.glob('gtFine/*/*/*_labelTrainIds.png'):
        assert cv2.imread(str(label), 0).shape == size
    for digit in coco(root, 'train')['annotations']:
        assert coco_mask.decode(digit['segmentation']).shape == size
    # The photograph covers the whole scene, without a constant border.
    pixels = cv2.imread(str(root / 'train2017/000000000000.png'))
    assert pixels[-size[0] // 4 :].std() > 0
    assert pixels[:, -size[1] // 4 :].std() > 0


def test_a_size_without_pixels_is_refused(tmp_path: Path) -> None:
    style = replace(PRESETS['det'], size=(0, 128))
    with pytest.raises(ValueError, match='expected height and width in pixels'):
        make_digit_scenes(tmp_path / 'digits', style, train=1, val=1, workers=1)


def test_tuning_scenes_share_no_scan_with_each_other_or_a_test(tmp_path: Path) -> None:
    root = tmp_path / 'tuning'
    make_digit_scenes(root, train=30, val=30, workers=1, tuning=True)
    scans = {
        split: {annotation['scan'] for annotation in coco(root, split)['annotations']}
        for split in ('train', 'val')
    }
    assert max(scans['train']) < TUNING_SCANS <= min(scans['val'])
    assert max(scans['val']) < TRAIN_SCANS
    with pytest.raises(ValueError, match='exists with other content'):
        make_digit_scenes(root, train=30, val=30, workers=1)


def test_a_contrast_that_no_colour_has_is_refused(tmp_path: Path) -> None:
    style = replace(PRESETS['det'], contrast=250.0)
    with pytest.raises(ValueError, match='lower `contrast` or `brightness`'):
        make_digit_scenes(tmp_path / 'digits', style, train=1, val=1, workers=1)
    assert not list(tmp_path.iterdir())


def test_the_tool_makes_scenes_of_the_given_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Path(__file__).parents[2] / 'tools/make_digit_scenes.py'
    command = ['--root', str(tmp_path / 'digits'), '--train', '1', '--val', '1']
    command += ['--workers', '1', '--size', '80', '100']
    monkeypatch.setattr('sys.argv', [str(tool), *command])
    runpy.run_path(str(tool), run_name='__main__')
    [image] = coco(tmp_path / 'digits', 'val')['images']
    assert (image['height'], image['width']) == (80, 100)
