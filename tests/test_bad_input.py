"""Unusual data either trains or raises one error that names its file."""

import copy
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from broken_data import (
    BOX,
    DET_PIPELINE,
    SEG_PIPELINE,
    build_dataset,
    encoded,
    labels,
    noise,
    write_coco,
    write_seg,
)
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from kdtoolbox.datasets.label_maps import set_ignored_by_heads
from kdtoolbox.datasets.reading import read_samples

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = ('gfl', 'crosskd', 'roi')
CUT = encoded(noise(64, 64, 3))[:4000]


def ends(name: str) -> dict:
    return dict(student=f'student.{name}', teacher=f'teacher.{name}')


def dense_losses() -> dict:
    """Return the losses that read boxes or targets of a dense head."""
    guides = dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
    own = dict(student_cls='student.cls', student_reg='student.reg')
    return dict(
        loss_fgd=dict(type='FGDLoss', **ends('fpn'), channels=8, num_levels=3),
        loss_fgfi=dict(type='FGFILoss', **ends('fpn')),
        loss_pgd_cls=dict(
            type='PGDClsLoss', **ends('cls_tower'), **guides, level_weights=[1, 1, 1]
        ),
        loss_pgd_reg=dict(type='PGDRegLoss', **ends('reg_tower'), **guides),
        loss_gid=dict(type='GIDLoss', **ends('fpn'), **own, **guides),
        loss_ld=dict(type='LDLoss', **ends('reg'), student_cls='student.cls'),
        loss_defeat=dict(type='DeFeatLoss', **ends('fpn')),
        loss_rm=dict(type='RMLoss', **ends('cls')),
    )


def pixel_losses() -> dict:
    """Return the losses that read the labels of pixels."""
    names = ('KD', 'DKD', 'NKD', 'WSLD', 'DIST', 'BPKD', 'DSDCategory')
    losses = {f'loss_{n}': dict(type=f'{n}Loss', **ends('logits')) for n in names}
    memory = dict(num_classes=4, student_channels=8, teacher_channels=8)
    critic = dict(num_classes=4, critic_weight=0.004)
    return losses | dict(
        loss_ifvd=dict(type='IFVDLoss', **ends('features')),
        loss_idd=dict(type='IDDLoss', **ends('features')),
        loss_cirkd=dict(type='CIRKDMiniBatchLoss', **ends('features')),
        loss_memory=dict(type='CIRKDMemoryLoss', **ends('features'), **memory),
        loss_skd=dict(type='SKDHolisticLoss', **ends('logits'), **critic),
    )


@pytest.fixture(scope='module')
def distillers(toy: SimpleNamespace) -> dict[str, Any]:
    """Return one distiller per kind of task; tests train copies of them."""
    scopes = dict(DefaultScope._instance_dict)
    dense = dict(fpn='neck', cls='bbox_head.gfl_cls', reg='bbox_head.scales.*')
    dense |= dict(
        cls_tower='bbox_head.cls_convs[-1]', reg_tower='bbox_head.reg_convs[-1]'
    )
    pixels = dict(logits='decode_head.conv_seg', features='decode_head.bottleneck')
    roi = dict(**ends('roi_cls'), labels='roi.labels')
    cross = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
    empty = dict(student={}, teacher={})
    made = dict(
        gfl=toy.build_distiller(
            toy.gfl(), recorders=dict.fromkeys(empty, dense), losses=dense_losses()
        ),
        crosskd=toy.build_distiller(
            toy.gfl(),
            sources=[dict(type='CrossHead', stage=1)],
            recorders=empty,
            losses=dict(
                loss_cross_cls=dict(
                    type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
                ),
                loss_cross_reg=dict(type='CrossKDDistributionLoss', **cross),
            ),
        ),
        roi=toy.build_distiller(
            toy.faster_rcnn(),
            sources=[dict(type='RoIResponses')],
            recorders=empty,
            losses={
                f'loss_{name}': dict(type=f'{name}Loss', **roi)
                for name in ('DKD', 'NKD', 'DeFeatRoI')
            },
        ),
        seg=toy.build_distiller(
            toy.segmentor(),
            recorders=dict.fromkeys(empty, pixels),
            losses=pixel_losses(),
        ),
    )
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    return made


@pytest.fixture
def train(distillers: dict[str, Any]) -> Callable[..., dict]:
    """Return a function that trains a copy for one step and returns its logs."""

    def step(name: str, config: dict) -> dict:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        model = copy.deepcopy(distillers[name]).train()
        before = copy.deepcopy(model.student.state_dict())
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        dataset = build_dataset(config, 'mmseg' if name == 'seg' else 'mmdet')
        batch = pseudo_collate(read_samples(dataset, range(len(dataset))))
        with DefaultScope.overwrite_default_scope('mmdet'):
            logs = model.train_step(batch, optimizer)
        bad = {key: float(v) for key, v in logs.items() if not torch.isfinite(v).all()}
        assert not bad
        after = model.student.state_dict()
        assert all(torch.isfinite(value.float()).all() for value in after.values())
        assert any(not torch.equal(after[key], before[key]) for key in before)
        return logs

    return step


def large(pipeline: list[dict], scale: tuple[int, int]) -> list[dict]:
    """Return a pipeline that resizes to a scale as large as in published configs."""
    return [t | dict(scale=scale) if 'Resize' in t['type'] else t for t in pipeline]


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('boxes', [[[], []], [[], [BOX]]], ids=['all', 'some'])
def test_images_without_boxes_train(
    boxes: list, name: str, train: Callable, tmp_path: Path
) -> None:
    train(name, write_coco(tmp_path / 'data', boxes))


@pytest.mark.parametrize('name', DETECTORS)
def test_crowd_and_tiny_and_outside_boxes_train(
    name: str, train: Callable, tmp_path: Path
) -> None:
    strange = [
        # The second box covers the centre of one anchor.
        [(5, 5, 1, 1), (7.5, 7.5, 1, 1), (63, 63, 1, 1), (5.5, 5.5, 1, 30)],
        [(100, 100, 20, 20), (-30, -30, 10, 10)],
        [(50, 50, 100, 100), (-30, -30, 60, 60), (-1e6, -1e6, 2e6, 2e6)],
        [(5, 5, 0, 0), (30, 30, -20, -20), (float('nan'), 5, 20, 20)],
        [(5, 5, float('nan'), 20), BOX, BOX],
    ]
    train(name, write_coco(tmp_path / 'boxes', strange))
    train(name, write_coco(tmp_path / 'crowd', iscrowd=1))


def palette(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert('P').save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize('name', ['gfl', 'seg'])
@pytest.mark.parametrize(
    'image',
    [
        noise(64, 64),
        noise(64, 64, dtype=np.uint16),
        noise(64, 64, 3, dtype=np.uint16),
        noise(64, 64, 4),
        palette(noise(64, 64)),
    ],
    ids=['gray', 'gray16', 'rgb16', 'rgba', 'palette'],
)
def test_gray_and_16_bit_and_palette_images_train(
    image: Any, name: str, train: Callable, tmp_path: Path
) -> None:
    write = write_seg if name == 'seg' else write_coco
    train(name, write(tmp_path / 'data', image=image))


def test_a_mask_of_ignored_pixels_alone_trains(train: Callable, tmp_path: Path) -> None:
    config = write_seg(tmp_path / 'data', label=np.full((64, 64), 255, np.uint8))
    logs = train('seg', config)
    counted = {'loss_DKD', 'loss_ifvd', 'loss_cirkd', 'decode.loss_ce'}
    assert counted <= logs.keys()
    assert all(logs[name] == 0 for name in counted)


@pytest.mark.parametrize('size', [(1, 1000), (1000, 1)])
def test_an_image_of_1_by_1000_pixels_trains(
    size: tuple[int, int], train: Callable, tmp_path: Path
) -> None:
    image = noise(*size, 3)
    box = (0, 0, size[1] // 2 + 1, size[0] // 2 + 1)
    config = write_coco(tmp_path / 'det', [[box], [box]], image)
    train('gfl', config | dict(pipeline=large(DET_PIPELINE, (1333, 800))))
    # mmseg cannot read a label map of one row or column.
    twice = 2 * size[0], 2 * size[1]
    config = write_seg(tmp_path / 'seg', noise(*twice, 3), labels(*twice))
    train('seg', config | dict(pipeline=large(SEG_PIPELINE, (2048, 1024))))


@pytest.mark.parametrize('image', [b'', CUT, b'text'], ids=['empty', 'cut', 'text'])
def test_a_corrupt_image_is_named(image: bytes, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', image=image)
    with pytest.raises(ValueError, match=r'images/1.png: .*tools/check_dataset.py'):
        read_samples(build_dataset(config, 'mmdet'), [1])


def test_an_error_of_a_worker_process_names_the_file(tmp_path: Path) -> None:
    dataset = build_dataset(write_coco(tmp_path / 'data', image=CUT), 'mmdet')
    dataset.__getitems__ = partial(read_samples, dataset)
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    batches = iter(loader)
    with pytest.raises(ValueError, match=r'images/0.png: .*failed to load image'):
        next(batches)
    # Otherwise a later test waits 5 s for the worker.
    batches._shutdown_workers()


def test_an_image_too_thin_to_resize_is_named(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', image=noise(1, 1000, 3))
    with pytest.raises(ValueError, match=r'images/1.png: error: OpenCV'):
        read_samples(build_dataset(config, 'mmdet'), [1])


@pytest.mark.parametrize(
    ('label', 'expected'),
    [
        (b'', 'UnidentifiedImageError'),
        (encoded(labels())[:90], 'OSError|SyntaxError'),
        (labels(32, 48), 'its image'),
        (labels(1, 64), 'not enough values to unpack'),
        (np.repeat(labels()[..., None], 3, axis=2), 'not one label per pixel'),
        (labels() + 3, r'holds \[4, 5, 6\]; there are 4 classes'),
    ],
    ids=['empty', 'cut', 'size', 'row', 'colours', 'values'],
)
def test_a_wrong_label_map_is_named(label: Any, expected: str, tmp_path: Path) -> None:
    np.random.seed(0)
    config = write_seg(tmp_path / 'data', label=label)
    # Without the crop, which might cut off the wrong pixels.
    pipeline = [t for t in config['pipeline'] if t['type'] != 'RandomCrop']
    dataset = build_dataset(config | dict(pipeline=pipeline), 'mmseg')
    with pytest.raises(ValueError, match=f'labels/0.png: .*({expected})'):
        read_samples(dataset, [0])


def with_label(config: dict, label: int, **changes: Any) -> Any:
    """Return a data set without a crop, with another label in its label maps."""
    mixed = labels()
    mixed[0] = label
    for path in (Path(config['data_root']) / 'labels').iterdir():
        path.write_bytes(encoded(mixed))
    pipeline = [t for t in config['pipeline'] if t['type'] != 'RandomCrop']
    return build_dataset(config | dict(pipeline=pipeline) | changes, 'mmseg')


def test_the_ignore_index_of_the_data_set_is_allowed(tmp_path: Path) -> None:
    config = write_seg(tmp_path / 'data')
    read_samples(with_label(config, 255), [0])
    read_samples(with_label(config, 254, ignore_index=254), [0])
    expected = (
        r'holds \[255\]; there are 4 classes, from 0, and the labels ignored by .*'
    )
    with pytest.raises(ValueError, match=expected + r'are \[0\]\.'):
        read_samples(with_label(config, 255, ignore_index=0), [0])
    both = dict(type='ConcatDataset', datasets=[config, config])
    read_samples(build_dataset(both, 'mmseg'), [3])


def test_the_ignored_labels_of_the_heads_replace_those_of_the_data(
    tmp_path: Path,
) -> None:
    config = write_seg(tmp_path / 'data')
    dataset = with_label(config, 255)
    set_ignored_by_heads({0})
    with pytest.raises(ValueError, match=r'holds \[255\].* are \[0\]'):
        read_samples(dataset, [0])
    read_samples(with_label(config, 0), [0])


def test_the_setting_that_wrote_a_wrong_label_is_named(tmp_path: Path) -> None:
    config = write_seg(tmp_path / 'data')
    set_ignored_by_heads({3})
    with pytest.raises(ValueError, match='255 for label 0 under `reduce_zero_label`'):
        read_samples(with_label(config, 0, reduce_zero_label=True), [0])
    rotate = dict(type='RandomRotate', prob=1.0, degree=(30, 30), seg_pad_val=9)
    turned = [*SEG_PIPELINE[:2], rotate, SEG_PIPELINE[-1]]
    with pytest.raises(ValueError, match=r'holds \[9\].*RandomRotate pads .* with 9'):
        read_samples(with_label(config, 0, pipeline=turned), [0])


def stored(path: Path, label: np.ndarray) -> None:
    Image.fromarray(label).save(path, 'TIFF')


@pytest.mark.parametrize(
    ('wrong', 'expected'),
    [
        (np.uint16(257), 'uint16 that are read as 8 bits: 257 as 1'),
        (np.int32(70000), 'int32 .*: 70000 as 112'),
        (np.int32(-1), 'int32 .*: -1 as 255'),
        (np.float32(1.5), 'float32 .*: 1.5 as 1'),
        (np.float32('nan'), 'float32 .*: nan as '),
    ],
)
def test_labels_that_do_not_fit_in_8_bits_are_refused(
    wrong: Any, expected: str, tmp_path: Path
) -> None:
    config = write_seg(tmp_path / 'data')
    pipeline = [t for t in SEG_PIPELINE if t['type'] != 'RandomCrop']
    dataset = build_dataset(config | dict(pipeline=pipeline), 'mmseg')
    both = dict(type='ConcatDataset', datasets=[config, config])
    wide = labels().astype(wrong.dtype)
    path = tmp_path / 'data' / 'labels' / '0.png'
    # Whole numbers up to 255 are read correctly from any type.
    stored(path, wide)
    read_samples(dataset, [0])
    wide[0, 0] = wrong
    stored(path, wide)
    fix = 'Write whole numbers from 0 to'
    match = f'labels/0.png: .*holds labels of type {expected}.* {fix}'
    with pytest.raises(ValueError, match=match):
        read_samples(dataset, [0])
    with pytest.raises(ValueError, match='that are read as 8 bits'):
        read_samples(build_dataset(both, 'mmseg'), [2])


def test_wide_labels_pass_with_a_loader_that_keeps_all_bits(tmp_path: Path) -> None:
    from mmcv.transforms import BaseTransform

    class LoadWide(BaseTransform):
        def transform(self, results: dict) -> dict:
            label = np.asarray(Image.open(results['seg_map_path'])).astype(np.int64)
            results['gt_seg_map'] = label - 1000
            results['seg_fields'] = ['gt_seg_map']
            return results

    config = write_seg(tmp_path / 'data')
    for index in range(2):
        path = tmp_path / 'data' / 'labels' / f'{index}.png'
        stored(path, labels().astype(np.uint16) + 1000)
    dataset = build_dataset(config, 'mmseg')
    dataset.pipeline.transforms[1] = LoadWide()
    read_samples(dataset, [0, 1])


@pytest.mark.parametrize('bands', [1, 4])
def test_images_of_one_and_four_channels_are_read(bands: int, tmp_path: Path) -> None:
    for write, scope in ((write_coco, 'mmdet'), (write_seg, 'mmseg')):
        config = write(tmp_path / scope, image=noise(64, 64, bands))
        kept = dict(type='LoadImageFromFile', color_type='unchanged')
        neutral = [t for t in config['pipeline'][1:] if 'Resize' not in t['type']]
        dataset = build_dataset(config | dict(pipeline=[kept, *neutral]), scope)
        for sample in read_samples(dataset, [0, 1]):
            assert sample['inputs'].shape == (bands, 64, 64)


@pytest.mark.e2e
def test_a_truncated_annotation_file_raises_one_clear_error_at_the_start(
    tmp_path: Path,
) -> None:
    write_coco(tmp_path / 'data')
    annotation = tmp_path / 'data' / 'ann.json'
    content = annotation.read_text()
    annotation.write_text(content[: len(content) // 2])
    dataset = dict(data_root=str(tmp_path / 'data'), ann_file='ann.json')
    dataset |= dict(data_prefix=dict(img='images'))
    config = tmp_path / 'cut.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/det_student.py'\n"
        f'train_dataloader = dict(dataset={json.dumps(dataset)})\n'
    )
    command = [sys.executable, 'tools/train.py', str(config), '--work-dir', tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('train_dataloader.dataset')
    assert str(annotation) in last
    assert 'no whole JSON' in last
