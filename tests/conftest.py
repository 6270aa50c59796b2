"""Small real models of mmdet and mmseg, batches for them, and a Runner around them."""

import functools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

# The import mode of the suite leaves sys.path alone; some tests share broken_data.py.
sys.path.insert(0, str(Path(__file__).parent))
# Threads of several processes wait for each other's processors, which takes up to ten
# times as long. The environment is for the processes that tests start.
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)

NORMALIZE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
SIZES = ((64, 64), (48, 64))


def _detector(
    kind: str, head: dict, base: int, out: int, norm_eval: bool, **parts: Any
) -> dict:
    model = dict(
        type=kind,
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            **NORMALIZE,
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=base,
            stem_channels=base,
            norm_eval=norm_eval,
        ),
        neck=dict(
            type='FPN',
            in_channels=[base * 2**stage for stage in range(4)],
            out_channels=out,
            start_level=1,
            num_outs=3,
        ),
        **{parts.pop('head_name', 'bbox_head'): head},
    )
    return dict(default_scope='mmdet', model=dict(model, **parts))


def gfl(base: int = 8, out: int = 8, norm_eval: bool = True) -> dict:
    head = dict(
        type='GFLHead',
        num_classes=3,
        in_channels=out,
        feat_channels=out,
        stacked_convs=1,
        norm_cfg=dict(type='GN', num_groups=4),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=4,
            scales_per_octave=1,
            strides=[8, 16, 32],
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_max=4,
    )
    return _detector(
        'GFL',
        head,
        base,
        out,
        norm_eval,
        train_cfg=dict(
            assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1
        ),
        test_cfg=dict(
            nms_pre=50,
            score_thr=0,
            nms=dict(type='nms', iou_threshold=0.6),
            max_per_img=5,
        ),
    )


def faster_rcnn(base: int = 8, out: int = 8) -> dict:
    coder = dict(type='DeltaXYWHBBoxCoder')
    nms = dict(type='nms', iou_threshold=0.7)
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5)
    sampler = dict(type='RandomSampler', num=16, pos_fraction=0.5)
    rpn_head = dict(
        type='RPNHead',
        in_channels=out,
        feat_channels=out,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32]
        ),
        bbox_coder=coder,
    )
    roi_head = dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=out,
            featmap_strides=[8, 16],
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=out,
            fc_out_channels=16,
            num_classes=3,
            bbox_coder=coder,
        ),
    )
    shared = dict(assigner=assigner, sampler=sampler, pos_weight=-1, debug=False)
    proposals = dict(nms_pre=50, max_per_img=20, nms=nms, min_bbox_size=0)
    return _detector(
        'FasterRCNN',
        rpn_head,
        base,
        out,
        True,
        head_name='rpn_head',
        roi_head=roi_head,
        train_cfg=dict(
            # Boxes are proposals of the second stage alone, not anchors.
            rpn=dict(
                shared,
                sampler=dict(sampler, add_gt_as_proposals=False),
                allowed_border=-1,
            ),
            rpn_proposal=proposals,
            rcnn=shared,
        ),
        test_cfg=dict(rpn=proposals, rcnn=dict(score_thr=0, nms=nms, max_per_img=5)),
    )


def segmentor(base: int = 8, norm_eval: bool = False) -> dict:
    norm = dict(type='BN', requires_grad=True)
    head = dict(norm_cfg=norm, num_classes=4, channels=8, align_corners=False)
    head |= dict(dropout_ratio=0.5, loss_decode=dict(type='CrossEntropyLoss'))
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', **NORMALIZE, bgr_to_rgb=True, size=(64, 64)
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=base,
            stem_channels=base,
            norm_cfg=norm,
            norm_eval=norm_eval,
        ),
        decode_head=dict(
            type='PSPHead', in_channels=8 * base, in_index=3, pool_scales=(1, 2), **head
        ),
        auxiliary_head=dict(
            type='FCNHead', in_channels=4 * base, in_index=2, num_convs=1, **head
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    return dict(default_scope='mmseg', model=model)


def build(config: dict) -> Any:
    """Build the model of a config as mmdet and mmseg do, without kdtoolbox."""
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS

    model = ConfigDict(config['model'], _scope_=config['default_scope'])
    return MODELS.build(model)


def _image(size: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)


def det_data(sizes: tuple = SIZES, boxes: int = 1, seed: int = 0) -> dict:
    """Return raw images with ground truth, as a data loader gives them."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for index, size in enumerate(sizes):
        sample = DetDataSample(metainfo=dict(img_id=index, img_shape=size))
        sample.set_metainfo(dict(ori_shape=size, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]] * boxes).reshape(-1, 4),
            labels=torch.full((boxes,), index),
        )
        samples.append(sample)
    images = [_image(size, seed + i) for i, size in enumerate(sizes)]
    return dict(inputs=images, data_samples=samples)


def seg_data(sizes: tuple = SIZES, seed: int = 0) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for index, size in enumerate(sizes):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        labels = _image(size, seed + 10 + index)[:1].long() % 4
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = [_image(size, seed + i) for i, size in enumerate(sizes)]
    return dict(inputs=images, data_samples=samples)


def distiller(student: dict, teacher: dict | None = None, /, **changes: Any) -> dict:
    """Return a distiller's config: CWD on what both sides' `fpn` records hold."""
    path = 'neck' if 'neck' in student['model'] else 'backbone'
    recorders = dict(student=dict(fpn=path), teacher=dict(fpn=path))
    loss = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
    config = dict(
        type='kdtoolbox.Distiller',
        student=student,
        teacher=dict(config=teacher or student, allow_random=True),
        recorders=recorders,
        losses=dict(loss_cwd=loss),
    )
    return config | changes


def build_distiller(*args: Any, **changes: Any) -> Any:
    from mmengine.registry import MODELS

    return MODELS.build(distiller(*args, **changes))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that share a fixture of their file, or a config, run in one process."""
    for item in items:
        path = getattr(item, 'callspec', None) and item.callspec.params.get('path')
        if isinstance(path, Path):
            item.add_marker(pytest.mark.xdist_group(path.stem))
        found = getattr(item, '_fixtureinfo', None)
        fixtures = found.name2fixturedefs.values() if found else ()
        if any(fixture.scope == 'module' for *_, fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope='session', autouse=True)
def _read_metafiles_once() -> Iterator[None]:
    """Keep the metafiles of mmdet and mmseg, which mmengine reads for each config."""
    from mmengine.config import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, 'load', functools.cache(utils.load))
        yield


@pytest.fixture(scope='session', autouse=True)
def _skip_garbage_collection() -> Iterator[None]:
    """Keep mmengine from collecting garbage whenever a data set is built.

    A collection takes 0.2 s and more in a process with thousands of tests.
    """
    from mmengine.dataset import base_dataset

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_dataset, 'gc', SimpleNamespace(collect=int))
        yield


@pytest.fixture(autouse=True)
def _forget_heads() -> Iterator[None]:
    """Forget the ignored labels that a start notes for its whole process."""
    yield
    label_maps = sys.modules.get('kdtoolbox.datasets.label_maps')
    if label_maps is not None:
        label_maps.set_ignored_by_heads(None)


@pytest.fixture(scope='session')
def toy() -> SimpleNamespace:
    """The functions of this file, for tests that cannot import it."""
    functions = (gfl, faster_rcnn, segmentor, build, det_data, seg_data)
    functions += (distiller, build_distiller)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture(scope='session')
def seg_mend() -> str:
    """The line that the segmentors of configs/digits need on the original packages.

    In mmsegmentation 1.2.2 class weights raise an IndexError at an ignored pixel.
    """
    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        return ''
    unweighted = 'decode_head=dict(loss_decode=dict(class_weight=None))'
    return f'model = dict(student=dict({unweighted}))\n'


@pytest.fixture
def make_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """A factory of Runners over two batches of one image that are held in memory."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DefaultScope
    from mmengine.runner import CheckpointLoader, Runner

    from kdtoolbox.checkpoints.reading import use_safe_loaders

    # As the tools do. Under torch >= 2.6 mmengine 0.10.7 cannot resume by its own.
    schemes = dict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)
    use_safe_loaders()
    # It asks compilers for their versions, which takes longer than the training.
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    # It starts git for each checkpoint.
    for module in ('runner.runner', 'hooks.runtime_info_hook'):
        monkeypatch.setattr(f'mmengine.{module}.get_git_hash', lambda: 'unknown')
    # An iteration loop sleeps two seconds before each pass over the data.
    no_sleep = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr('mmengine.runner.loops.time', no_sleep)
    scopes = dict(DefaultScope._instance_dict)

    def make(model: Any, **arguments: Any) -> Any:
        data = det_data()
        samples = [
            dict(inputs=image, data_samples=sample)
            for image, sample in zip(*data.values(), strict=True)
        ]
        arguments.setdefault('work_dir', str(tmp_path))
        arguments.setdefault('train_cfg', dict(by_epoch=True, max_epochs=2))
        checkpoint = dict(type='CheckpointHook', interval=1)
        checkpoint |= arguments.pop('checkpoint', {})
        return Runner(
            model=model,
            train_dataloader=DataLoader(samples, collate_fn=pseudo_collate),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(checkpoint=checkpoint, logger=None),
            default_scope='mmdet',
            log_level='ERROR',
            # Runners of one name share the log of the best score.
            experiment_name=uuid.uuid4().hex,
            **arguments,
        )

    yield make
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
