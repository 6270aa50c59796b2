import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from broken_data import (
    BOX,
    MASK_PIPELINE,
    SEG_CLASSES,
    SEG_PIPELINE,
    build_dataset,
    write_coco,
    write_seg,
)
from mmengine.registry import DefaultScope
from torch import nn

from kdtoolbox.datasets import inspection
from kdtoolbox.datasets.inspection import check_dataset, leaves
from kdtoolbox.datasets.label_maps import ignored_labels
from kdtoolbox.runs import preflight
from kdtoolbox.runs.preflight import check_data, check_heads

SPLIT = 'train_dataloader.dataset'


def check(config: dict, scope: str = 'mmdet') -> None:
    check_dataset(build_dataset(config, scope), SPLIT)


def rewrite(config: dict, **changes: Any) -> None:
    path = Path(config['data_root']) / 'ann.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def start() -> Callable[[dict], None]:
    """Return a function that checks a training on a data set before it starts."""

    class Lazy(SimpleNamespace):
        # As in a Runner, the first access to the loop builds the data set.
        @property
        def train_loop(self) -> Any:
            dataset = build_dataset(self.cfg['train_dataloader']['dataset'], self.scope)
            return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))

    def run(config: dict, scope: str = 'mmdet', model: Any = None) -> None:
        cfg = dict(train_dataloader=dict(dataset=config))
        runner = Lazy(cfg=cfg, scope=scope, model=model or nn.Module(), val_loop=None)
        with DefaultScope.overwrite_default_scope(scope):
            check_data(runner)

    return run


def test_a_whole_student_needs_labels(
    tmp_path: Path, start: Callable, toy: SimpleNamespace
) -> None:
    write_coco(tmp_path / 'det', [[BOX], []])
    images = dict(
        type='kdtoolbox.ImageFolder',
        data_root=str(tmp_path),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')],
    )
    model = toy.build_distiller(toy.gfl())
    with pytest.raises(ValueError, match=r'dataset: an ImageFolder .*kdtoolbox.Pretra'):
        start(images, model=model)
    start(images, model=toy.build_distiller(toy.gfl(), type='kdtoolbox.Pretrainer'))


def test_good_data_pass(tmp_path: Path, start: Callable) -> None:
    start(write_coco(tmp_path / 'det', [[BOX], []]))
    start(write_seg(tmp_path / 'seg'), 'mmseg')


def test_a_cut_annotation_is_named(tmp_path: Path, start: Callable) -> None:
    config = write_coco(tmp_path / 'data')
    path = tmp_path / 'data' / 'ann.json'
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf'{SPLIT}: {path} of 200 bytes is no whole'):
        start(config)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='no whole JSON file'):
        start(config)


def test_an_annotation_that_lacks_keys_is_named(
    tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    rewrite(config, images=[dict(id=0, file_name='0.png')])
    with pytest.raises(ValueError, match=r"image 0 has no \['height', 'width'\]"):
        start(config)


def test_a_missing_annotation_or_folder_is_named(
    tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    with pytest.raises(ValueError, match='gone.json does not exist; correct `ann_file'):
        start(config | dict(ann_file='gone.json'))
    config = write_seg(tmp_path / 'seg')
    prefix = dict(img_path='gone', seg_map_path='labels')
    with pytest.raises(ValueError, match=r'does not exist; correct `data_prefix.img_p'):
        start(config | dict(data_prefix=prefix), 'mmseg')


def test_an_empty_dataset_is_refused(tmp_path: Path, start: Callable) -> None:
    config = write_coco(tmp_path / 'data')
    strict = config | dict(filter_cfg=dict(filter_empty_gt=True, min_size=100))
    with pytest.raises(ValueError, match=f"{SPLIT} is empty.*'min_size': 100"):
        start(strict)
    with pytest.raises(ValueError, match='is empty'):
        check(strict | dict(serialize_data=False))
    config = write_seg(tmp_path / 'seg') | dict(img_suffix='.jpg')
    with pytest.raises(ValueError, match=r'is empty.*`img_suffix`'):
        start(config, 'mmseg')


def test_an_error_without_a_cause_in_the_data_is_not_changed(
    tmp_path: Path, start: Callable
) -> None:
    with pytest.raises(TypeError, match='nonsense'):
        start(write_coco(tmp_path / 'data') | dict(nonsense=1))


def test_missing_classes_are_listed(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', categories=('a', 'c', 'x'))
    told = '3 classes.*2 categories.*without a category: b; .*without a class: x'
    with pytest.raises(ValueError, match=told):
        check(config)


def test_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', categories=('a', 'b', 'b', 'c'))
    with pytest.raises(ValueError, match='named twice: b'):
        check(config)


def test_a_class_without_comma_is_refused(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data') | dict(metainfo=dict(classes='abc'))
    with pytest.raises(ValueError, match=r"`classes=\('abc',\)`"):
        check(config)


@pytest.mark.parametrize(
    'changes', [dict(category_id=9), dict(iscrowd=1), dict(area=0)]
)
def test_data_without_any_box_are_refused(changes: dict, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', **changes)
    with pytest.raises(ValueError, match='none of its 2 images has a box'):
        check(config)


def test_images_without_labels_pass_where_the_pipeline_loads_none(
    tmp_path: Path,
) -> None:
    config = write_coco(tmp_path / 'data', [[], []])
    unlabelled = [
        dict(type='LoadEmptyAnnotations') if t['type'] == 'LoadAnnotations' else t
        for t in config['pipeline']
    ]
    check(config | dict(pipeline=unlabelled))


def test_a_part_of_background_images_passes_beside_others(
    tmp_path: Path, start: Callable
) -> None:
    parts = [write_coco(tmp_path / 'a'), write_coco(tmp_path / 'b', [[], []])]
    start(dict(type='ConcatDataset', datasets=parts))
    # If all boxes are dropped, the images are not background images.
    parts[1] = write_coco(tmp_path / 'c', category_id=9)
    with pytest.raises(ValueError, match=r'datasets\[1\]: none of its 2 images'):
        start(dict(type='ConcatDataset', datasets=parts))


def test_an_infinite_box_that_mmdet_keeps_is_refused(tmp_path: Path) -> None:
    box = (5, 5, float('inf'), 9)
    config = write_coco(tmp_path / 'data', [[BOX], [box]], area=9)
    with pytest.raises(ValueError, match='1.png is not finite'):
        check(config)


@pytest.mark.parametrize(
    'box', [[5, 5, 5, 9], [9, 5, 5, 9], [70, 5, 80, 9], [-9, 5, 0, 9]]
)
def test_a_box_of_another_format_is_checked_too(box: list) -> None:
    info = dict(img_path='a.png', height=64, width=64, instances=[dict(bbox=box)])
    with pytest.raises(ValueError, match='no area or lies outside'):
        inspection._count_boxes(info, SPLIT)


@pytest.mark.parametrize('box', [[5, 5, 5, 9], [70, 5, 80, 9]])
def test_a_box_that_the_data_set_ignores_may_have_no_area(box: list) -> None:
    ignored = dict(bbox=box, ignore_flag=1)
    info = dict(img_path='a.png', height=64, width=64, instances=[ignored])
    assert inspection._count_boxes(info, SPLIT) == 0
    ignored['bbox'][0] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        inspection._count_boxes(info, SPLIT)


def test_missing_files_are_counted(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', [[BOX]] * 3)
    for index in (1, 2):
        (tmp_path / 'data' / 'images' / f'{index}.png').unlink()
    with pytest.raises(ValueError, match=r'2 of 3 images are missing: .*1.png, .*2'):
        check(config)


def test_missing_label_maps_are_counted(tmp_path: Path) -> None:
    config = write_seg(tmp_path / 'data')
    (tmp_path / 'data' / 'labels' / '1.png').unlink()
    with pytest.raises(ValueError, match='1 of 2 label maps are missing'):
        check(config, 'mmseg')
    images_alone = [t for t in config['pipeline'] if t['type'] != 'LoadAnnotations']
    check(config | dict(pipeline=images_alone), 'mmseg')


def test_files_elsewhere_are_not_looked_for(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'images' / '0.png').unlink()
    remote = dict(type='LoadImageFromFile', backend_args=dict(backend='petrel'))
    check(config | dict(pipeline=[remote]))


def test_data_sets_inside_wrappers_are_checked(tmp_path: Path, start: Callable) -> None:
    parts = [write_coco(tmp_path / name, [[BOX]]) for name in ('one', 'two')]
    both = dict(type='ConcatDataset', datasets=parts)
    config = dict(type='RepeatDataset', times=2, dataset=both)
    wrapped = build_dataset(config, 'mmdet')
    places = [where for where, _ in leaves(wrapped, SPLIT)]
    assert places == [f'{SPLIT}.dataset.datasets[{i}]' for i in (0, 1)]
    assert list(leaves([1, 2], SPLIT)) == []
    start(config)
    (tmp_path / 'two' / 'ann.json').write_text('{')
    with pytest.raises(ValueError, match=rf'datasets\[1\]: {tmp_path}/two/ann.json'):
        start(config)


def heads(**counts: int) -> nn.Module:
    model = nn.Module()
    for name, count in counts.items():
        head = nn.Module()
        head.num_classes = count
        model.add_module(name, nn.ModuleList([head]) if name == 'bbox_head' else head)
    return model


def test_heads_with_another_number_of_classes_are_refused(
    tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    start(config, model=heads(bbox_head=3, rpn_head=1, loss_cls=80))
    told = r'3 classes and `model.bbox_head.0` 80; set `model.bbox_head.0.num_classes=3'
    with pytest.raises(ValueError, match=told):
        start(config, model=heads(rpn_head=1, bbox_head=80))


@pytest.mark.parametrize('kind', ['GroundingDINOHead', 'ATSSVLFusionHead'])
def test_open_vocabulary_heads_have_no_number_of_classes(
    kind: str, tmp_path: Path, start: Callable
) -> None:
    model = heads(bbox_head=256)
    model.bbox_head[0].__class__ = type(kind, (nn.Module,), {})
    start(write_coco(tmp_path / 'data'), model=model)


def test_the_student_of_a_distiller_is_compared(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    config = write_seg(tmp_path / 'data')
    model = toy.build_distiller(toy.segmentor())
    check_heads(model, build_dataset(config, 'mmseg'), SPLIT)
    fewer = config | dict(metainfo=dict(classes=SEG_CLASSES[:3]))
    with pytest.raises(ValueError, match=r'`model.student.decode_head` 4; set'):
        check_heads(model, build_dataset(fewer, 'mmseg'), SPLIT)


def test_one_process_checks(
    tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_coco(tmp_path / 'data', category_id=9)
    monkeypatch.setattr(preflight, 'is_main_process', lambda: False)
    start(config)


def test_a_corrupt_image_of_the_validation_is_named_too(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', image=b'text')
    dataset = build_dataset(config, 'mmdet')
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    check_data(SimpleNamespace(model=nn.Module(), train_loop=None, val_loop=loop))
    with pytest.raises(ValueError, match='images/1.png: .*failed to load'):
        dataset.__getitems__([1])


def segmentor(pad: int = 255, size: Any = (64, 64), **ignored: Any) -> nn.Module:
    """Return a model whose heads of these names ignore these labels."""
    model = heads(**dict.fromkeys(ignored, 4))
    for name, label in ignored.items():
        getattr(model, name).ignore_index = label
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.seg_pad_val = pad
    model.data_preprocessor.size = size
    return model


def test_padding_that_the_head_does_not_ignore_is_refused(
    tmp_path: Path, start: Callable
) -> None:
    config = write_seg(tmp_path / 'data')
    told = (
        r'`model.data_preprocessor` pads label maps with 255, which '
        r'`model.decode_head` does not ignore and has no class for: .*'
        r'Set `model.data_preprocessor.seg_pad_val=0`'
    )
    with pytest.raises(ValueError, match=told):
        start(config, 'mmseg', segmentor(decode_head=0))
    with pytest.raises(
        ValueError, match='pads label maps with 0.*would learn as a class'
    ):
        start(config, 'mmseg', segmentor(pad=0, decode_head=255))
    start(config, 'mmseg', segmentor(pad=0, decode_head=0))
    start(config, 'mmseg', segmentor(pad=-100, decode_head=-100))


def test_the_padding_of_the_students_preprocessor_is_compared(
    tmp_path: Path, toy: SimpleNamespace
) -> None:
    model = toy.build_distiller(toy.segmentor())
    model.data_preprocessor.size = (64, 64)
    model.student.decode_head.ignore_index = 3
    dataset = build_dataset(write_seg(tmp_path / 'data'), 'mmseg')
    told = r'`model.student.data_preprocessor.seg_pad_val=3`'
    with pytest.raises(ValueError, match=told):
        preflight.check_ignored(model, dataset, SPLIT)


def scaled(*changes: dict) -> list[dict]:
    """Return the pipeline for segmentation with other transforms in its middle."""
    return [*SEG_PIPELINE[:2], *changes, *SEG_PIPELINE[4:]]


CROP = dict(type='RandomCrop', crop_size=(64, 64))


@pytest.mark.parametrize(
    'pipeline',
    [
        # As for HSI-Drive, whose published config ignores 0 and has these lines.
        scaled(CROP),
        scaled(dict(type='Resize', scale=(64, 64))),
        # As for Cityscapes, in small.
        scaled(
            dict(
                type='RandomResize',
                scale=(256, 128),
                ratio_range=(0.5, 2.0),
                keep_ratio=True,
            ),
            CROP,
        ),
        scaled(dict(type='Pad', size=(64, 64), pad_val=dict(img=0, seg=0))),
        scaled(dict(type='ResizeShortestEdge', scale=32, max_size=99), CROP),
    ],
    ids=['crop', 'resize', 'cityscapes', 'pad', 'unknown'],
)
def test_padding_that_may_never_happen_passes(
    pipeline: list, tmp_path: Path, start: Callable
) -> None:
    config = write_seg(tmp_path / 'data') | dict(pipeline=pipeline)
    start(config, 'mmseg', segmentor(decode_head=0))


@pytest.mark.parametrize(
    'resize',
    [
        dict(type='RandomChoiceResize', scales=[(256, 128), (96, 48)], keep_ratio=True),
        dict(
            type='RandomChoiceResize', scales=[99, 32], resize_type='ResizeShortestEdge'
        ),
        dict(type='RandomResize', scale=[(96, 32), (99, 99)], keep_ratio=True),
        dict(type='Resize', scale=(64, 63)),
    ],
    ids=['choice', 'shortest', 'range', 'fixed'],
)
def test_resizing_below_the_size_is_padding(
    resize: dict, tmp_path: Path, start: Callable
) -> None:
    resize = resize | (dict(max_size=999) if 'resize_type' in resize else {})
    config = write_seg(tmp_path / 'data') | dict(pipeline=scaled(resize, CROP))
    with pytest.raises(ValueError, match='pads label maps with 255'):
        start(config, 'mmseg', segmentor(decode_head=0))
    start(config, 'mmseg', segmentor(decode_head=0, size=None))


def test_heads_that_learn_other_things_may_ignore_other_labels(
    tmp_path: Path, start: Callable
) -> None:
    config = write_seg(tmp_path / 'data')
    start(config, 'mmseg', segmentor(pad=0, decode_head=0, auxiliary_head=255))
    start(config, 'mmseg', segmentor(decode_head=None))
    with pytest.raises(ValueError, match='`model.auxiliary_head` does not ignore'):
        start(config, 'mmseg', segmentor(decode_head=255, auxiliary_head=0))
    for kind in ('STDCHead', 'VPDDepthHead'):
        model = segmentor(decode_head=255, auxiliary_head=0)
        model.auxiliary_head = type(kind, (nn.Module,), {})()
        model.auxiliary_head.num_classes = 2
        model.auxiliary_head.ignore_index = 0
        start(config, 'mmseg', model)


def test_a_label_that_the_data_set_alone_ignores_is_refused(
    tmp_path: Path, start: Callable
) -> None:
    config = write_seg(tmp_path / 'data')
    told = (
        rf'{SPLIT} ignores the label 0 and `model.decode_head` 255; set '
        rf'`model.decode_head.ignore_index=0` or `{SPLIT}.ignore_index=255`'
    )
    with pytest.raises(ValueError, match=told):
        start(config | dict(ignore_index=0), 'mmseg', segmentor(decode_head=255))
    start(config | dict(ignore_index=0), 'mmseg', segmentor(pad=0, decode_head=0))
    # 255 is the default of mmseg's data sets.
    start(config, 'mmseg', segmentor(pad=0, decode_head=0))


def test_label_maps_are_judged_by_the_heads_of_the_run(
    tmp_path: Path, start: Callable
) -> None:
    config = write_seg(tmp_path / 'data')
    dataset = build_dataset(config, 'mmseg')
    tested = build_dataset(config | dict(test_mode=True), 'mmseg')
    assert ignored_labels(dataset) == {255}
    start(config, 'mmseg', segmentor(pad=7, decode_head=7, auxiliary_head=7))
    assert ignored_labels(dataset) == {7}
    assert ignored_labels(tested) == {7, 255}
    start(config, 'mmseg', segmentor(decode_head=255, size=None, auxiliary_head=3))
    assert ignored_labels(dataset) == set()
    start(config, 'mmseg')
    assert ignored_labels(dataset) == {255}
    assert ignored_labels([1, 2]) is None


def test_annotations_without_masks_are_named(tmp_path: Path, start: Callable) -> None:
    config = write_coco(tmp_path / 'data', [[BOX], [BOX, BOX]])
    start(config)
    told = (
        rf'{SPLIT}: 2 of 2 images lack what the pipeline loads, first .*images/0.png '
        rf'\(annotation 0 of {tmp_path}/data/ann.json\): there is no '
        r'`segmentation`. Set `with_mask=False` in `LoadAnnotations`'
    )
    masked = config | dict(pipeline=MASK_PIPELINE)
    with pytest.raises(ValueError, match=told):
        start(masked)
    with pytest.raises(ValueError, match='no `segmentation`'):
        check(masked | dict(test_mode=True))
    square = [[8, 8, 40, 8, 40, 40, 8, 40]]
    whole = write_coco(tmp_path / 'whole', segmentation=square)
    start(whole | dict(pipeline=MASK_PIPELINE))


def loading(**changes: Any) -> list[dict]:
    return [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', **changes)]


def test_label_maps_that_the_data_set_does_not_name_are_missed(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data') | dict(pipeline=loading(with_seg=True))
    with pytest.raises(ValueError, match='no label map. Name their folder in `data_p'):
        check(config)
    # mmdet loads none then, and its models predict without.
    check(config | dict(test_mode=True))
    prefix = dict(img='images/', seg='gone/')
    with pytest.raises(ValueError, match='2 of 2 label maps are missing'):
        check(config | dict(data_prefix=prefix))
    check(config | dict(data_prefix=prefix, pipeline=loading()))
    bare = write_seg(tmp_path / 'seg') | dict(data_prefix=dict(img_path='images'))
    for tested in (False, True):
        with pytest.raises(ValueError, match='no label map.*`seg_map_path` for mmseg'):
            check(bare | dict(test_mode=tested), 'mmseg')


def test_proposals_without_a_file_are_reported(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    pipeline = [dict(type='LoadProposals')]
    with pytest.raises(ValueError, match='first .*0.png: there are no proposals; set'):
        check(config | dict(pipeline=pipeline))


def test_panoptic_data_without_segments_are_named(
    tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(utils=SimpleNamespace(rgb2id=None))
    monkeypatch.setitem(sys.modules, 'panopticapi', fake)
    config = write_coco(tmp_path / 'data')
    config |= dict(pipeline=[dict(type='LoadPanopticAnnotations')])
    with pytest.raises(ValueError, match='no label map'):
        check(config)
    maps = config | dict(data_prefix=dict(img='images/', seg='images/'))
    with pytest.raises(ValueError, match='no `segments_info`. Take a panoptic data'):
        check(maps)
    told = r"annotation 0 has no \['segments_info'\]"
    with pytest.raises(ValueError, match=told):
        start(maps | dict(type='CocoPanopticDataset'))


def test_files_of_single_channels_are_looked_for(tmp_path: Path) -> None:
    dataset = build_dataset(write_coco(tmp_path / 'data', [[BOX]]), 'mmdet')
    info = dataset.get_data_info(0)
    files = [info['img_path'], str(tmp_path / 'gone.png')]
    dataset.get_data_info = lambda index: info | dict(img_path=files)
    with pytest.raises(ValueError, match='1 of 2 images are missing: .*gone.png'):
        check_dataset(dataset, SPLIT)
