import io
import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from broken_data import (
    BOX,
    MALFORMED,
    MASK_PIPELINE,
    REPEATED,
    SEG_PIPELINE,
    edit_coco,
    encoded,
    labels,
    noise,
    photo,
    write_coco,
    write_seg,
)
from mmengine.registry import DefaultScope
from PIL import Image

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'check_dataset.py'


@pytest.fixture(scope='module')
def tool() -> Any:
    spec = spec_from_file_location('check_dataset', PATH)
    module = sys.modules['check_dataset'] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules['check_dataset']


@pytest.fixture
def check(
    tool: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the tool and returns its exit code and output."""
    monkeypatch.setenv('COLUMNS', '400')
    scopes = dict(DefaultScope._instance_dict)

    def run(
        config: dict | str, scope: str = 'mmdet', workers: int = 0, model: Any = None
    ) -> tuple[int, str]:
        path = tmp_path / 'config.py'
        text = (
            f"default_scope = '{scope}'\nval_dataloader = dict(dataset={config!r})\n"
            f'model = {model!r}\n'
        )
        path.write_text(config if isinstance(config, str) else text)
        command = [str(PATH), str(path), '--split', 'val', '--workers', str(workers)]
        monkeypatch.setattr(sys, 'argv', command)
        return tool.check(tool.parse_args()), capsys.readouterr().out

    yield run
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def test_good_data_have_no_faults(check: Callable, tmp_path: Path) -> None:
    files = sorted(tmp_path.rglob('*'))
    code, output = check(write_coco(tmp_path / 'det'), workers=1)
    assert code == 0
    assert '2 images read, nothing found' in output
    assert check(write_seg(tmp_path / 'seg'), 'mmseg')[0] == 0
    assert not files


def test_damaged_images_are_listed(check: Callable, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', [[BOX]] * 5, suffix='.jpg')
    images = tmp_path / 'data' / 'images'
    whole = encoded(noise(64, 64, 3), '.jpg')
    (images / '1.jpg').write_bytes(b'')
    (images / '2.jpg').write_bytes(whole[:-200])
    (images / '3.jpg').unlink()
    (images / '4.jpg').write_bytes(encoded(noise(48, 64, 3), '.jpg'))
    code, output = check(config)
    assert code == 1
    assert 'cannot be read' in output
    assert f'{images}/1.jpg: error: OpenCV' in output
    assert f'{images}/2.jpg: ' in output
    assert f'{images}/3.jpg: FileNotFoundError' in output
    assert f'{images}/4.jpg: (48, 64), not (64, 64)' in output
    assert '1 of 5 images are missing' in output
    assert '0.jpg' not in output


def test_a_truncated_image_is_listed_even_if_it_loads(
    check: Callable, tmp_path: Path
) -> None:
    content = encoded(noise(64, 64, 3), '.jpg')[:-200]
    config = write_coco(tmp_path / 'data', [[BOX]], content, suffix='.jpg')
    # Some versions of OpenCV fill the missing part with grey. No loader has the same
    # effect here.
    code, output = check(config | dict(pipeline=[]))
    assert code == 1
    assert 'cut off' in output
    assert '0.jpg: image file is truncated' in output


def test_boxes_that_mmdet_drops_are_listed(check: Callable, tmp_path: Path) -> None:
    boxes = [BOX, (99, 9, 9, 9), (9, 9, 0.5, 9), (9, 9, float('nan'), 9)]
    config = write_coco(tmp_path / 'data', [boxes])
    path = tmp_path / 'data' / 'ann.json'
    content = json.loads(path.read_text())
    content['annotations'] += [
        dict(id=8, image_id=7, category_id=1, bbox=BOX, area=9),
        dict(id=9, image_id=0, category_id=7, bbox=BOX, area=9),
    ]
    path.write_text(json.dumps(content))
    code, output = check(config)
    assert code == 1
    [row] = [line for line in output.splitlines() if 'boxes that are dropped' in line]
    assert ' 5 ' in row
    assert 'annotation 1: bbox [99, 9, 9, 9] lies outside of its 64x64' in output
    assert 'annotation 2: bbox [9, 9, 0.5, 9], area 4.5: under a pixel' in output
    assert 'annotation 3: bbox [9, 9, nan, 9] is not finite' in output


def test_faults_of_a_coco_annotation(tool: Any) -> None:
    image = dict(id=0, file_name='a', height=64, width=64)
    box = dict(id=0, image_id=0, category_id=1, bbox=BOX, area=9)
    names = [dict(id=1, name='a'), dict(id=2, name='b')]
    content = dict(images=[image], annotations=[box], categories=names)
    faults = tool.coco_faults
    assert not any(faults(content, ['a', 'b']).values())
    assert faults(content, ['b', 'a'])['classes'] == [
        "the order of the file is ['a', 'b']"
    ]
    assert faults(content | dict(images=[image] * 2))['duplicates'] == [
        'images id 0 twice'
    ]
    lost = faults(content | dict(annotations=[box | dict(image_id=5)]))
    assert lost['boxes'] == ['annotation 0: there is no image 5']
    other = faults(content | dict(annotations=[box | dict(category_id=5)]))
    assert other['boxes'] == ['annotation 0: there is no category 5']
    assert faults({})['keys'][0] == 'there is no `images`'
    assert faults([])['keys'][0].startswith('it holds [], not an object with `images`')


@pytest.mark.parametrize(
    ('label', 'expected'),
    [
        (labels() + 2, '[4, 5] of 4 classes'),
        (labels(32, 48), '(32, 48), not (64, 64)'),
        (
            np.full((64, 64), 256, np.uint16),
            'uint16 that are read as 8 bits: 256 as 0',
        ),
        (b'', 'UnidentifiedImageError'),
    ],
)
def test_wrong_label_maps_are_listed(
    label: Any, expected: str, check: Callable, tmp_path: Path
) -> None:
    code, output = check(write_seg(tmp_path / 'data', label=label), 'mmseg')
    assert code == 1
    assert expected in output


def test_a_cut_annotation_is_refused(check: Callable, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'ann.json').write_text('{"images": [')
    with pytest.raises(ValueError, match='no whole JSON'):
        check(config)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize(
    ('color_type', 'how'),
    [('color', 'turned'), ('grayscale', 'turned')]
    + [('unchanged', 'unturned'), ('color_ignore_orientation', 'unturned')],
)
def test_square_photos_that_exif_turns_are_listed(
    color_type: str, how: str, backend: str, check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data', [[BOX]] * 3, suffix='.jpg')
    for index, orientation in ((0, 6), (1, 1), (2, 3)):
        path = tmp_path / 'data' / 'images' / f'{index}.jpg'
        path.write_bytes(photo(orientation))
    reader = dict(type='LoadImageFromFile', color_type=color_type)
    reader |= dict(imdecode_backend=backend)
    code, output = check(config | dict(pipeline=[reader]))
    assert code == 1
    assert 'turned by EXIF' in output
    for name, orientation in ((0, 6), (2, 3)):
        expected = (
            f'{name}.jpg: has EXIF orientation {orientation} and is read {how} by'
        )
        assert expected in output
    assert '1.jpg' not in output
    # The pixels are turned as the message says.
    from mmcv.transforms import LoadImageFromFile

    reader.pop('type')
    path = str(tmp_path / 'data' / 'images' / '0.jpg')
    read = LoadImageFromFile(**reader)(dict(img_path=path))['img']
    raw = np.asarray(Image.open(path).convert('L'), float)
    gray = np.asarray(read, float)
    gray = gray.mean(-1) if gray.ndim == 3 else gray
    apart = [np.abs(gray - np.rot90(raw, turns)).mean() for turns in (0, -1)]
    assert (apart[1] < apart[0]) == (how == 'turned')


def test_oblong_photos_are_judged_by_their_size(
    check: Callable, tmp_path: Path
) -> None:
    upright = write_coco(tmp_path / 'upright', [[BOX]], noise(64, 48, 3), suffix='.jpg')
    lying = write_coco(tmp_path / 'lying', [[BOX]], noise(48, 64, 3), suffix='.jpg')
    for root in ('upright', 'lying'):
        path = tmp_path / root / 'images' / '0.jpg'
        path.write_bytes(photo(6, height=48, width=64))
    assert check(upright)[0] == 0
    code, output = check(lying)
    assert code == 1
    assert '(64, 48), not (48, 64)' in output
    assert 'EXIF orientation 6 and is read turned' in output


def test_photos_with_label_maps_are_listed(check: Callable, tmp_path: Path) -> None:
    # PNG files can have an EXIF orientation, too.
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 8
    Image.fromarray(noise(64, 64, 3)).save(buffer, 'PNG', exif=exif)
    config = write_seg(tmp_path / 'data', image=buffer.getvalue())
    code, output = check(config, 'mmseg')
    assert code == 1
    assert '0.png: has EXIF orientation 8' in output


def test_annotations_without_masks_are_listed(check: Callable, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data', [[BOX], [BOX, BOX, BOX, BOX]])
    assert check(config)[0] == 0
    path = tmp_path / 'data' / 'ann.json'
    content = json.loads(path.read_text())
    polygon = [8, 8, 40, 8, 40, 40, 8, 40]
    masks = ([polygon], polygon, [polygon[:4]], dict(counts='', size=[64, 64]))
    for annotation, mask in zip(content['annotations'][1:], masks, strict=True):
        annotation['segmentation'] = mask
    path.write_text(json.dumps(content))
    code, output = check(config | dict(pipeline=MASK_PIPELINE))
    assert code == 1
    assert 'annotation 0 of image 0: no `segmentation`, which the pipe' in output
    assert 'annotation 2 of image 1: no part of its segmentation' in output
    assert 'annotation 1 ' not in output
    assert 'images/0.png: there is no `segmentation`. Set `with_mask=False`' in output
    assert 'KeyError' not in output


def test_run_length_masks_are_listed_without_poly2mask(tool: Any) -> None:
    loader = SimpleNamespace(with_mask=True, poly2mask=False)
    image = dict(id=0, file_name='a', height=64, width=64)
    box = dict(id=0, image_id=0, category_id=1, bbox=BOX, area=9)
    box |= dict(segmentation=dict(counts='a', size=[64, 64]))
    content = dict(images=[image], annotations=[box], categories=[dict(id=1, name='a')])
    assert 'takes no other' in tool.coco_faults(content, loaders=[loader])['masks'][0]
    crowd = content | dict(annotations=[box | dict(iscrowd=1)])
    assert not tool.coco_faults(crowd, loaders=[loader])['masks']
    loader.poly2mask = True
    assert not tool.coco_faults(content, loaders=[loader])['masks']


def test_segments_of_panoptic_annotations_are_read(tool: Any) -> None:
    image = dict(id=0, file_name='a', height=64, width=64)
    segment = dict(id=5, category_id=1, bbox=BOX, area=9)
    listed = [dict(image_id=0, segments_info=[segment])] * 2
    content = dict(images=[image], annotations=listed)
    content |= dict(categories=[dict(id=1, name='a', isthing=1)])
    assert not any(tool.coco_faults(content, ['a'], panoptic=True).values())
    segment |= dict(bbox=(99, 9, 9, 9))
    faults = tool.coco_faults(content, panoptic=True)
    assert 'lies outside' in faults['boxes'][0]


def test_ignored_labels_pass(check: Callable, tmp_path: Path) -> None:
    mixed = labels()
    mixed[0] = 255
    config = write_seg(tmp_path / 'data', label=mixed)
    assert check(config, 'mmseg')[0] == 0
    other = config | dict(ignore_index=0)
    expected = '[255] of 4 classes, ignored [0]'
    assert expected in check(other, 'mmseg')[1]
    head = dict(decode_head=dict(type='FCNHead', ignore_index=0))
    for model in (head, dict(student=head), dict(decode_head=[head['decode_head']])):
        assert expected in check(config, 'mmseg', model=model)[1]
        # The label maps of a validation do not reach the head.
        tested = config | dict(test_mode=True)
        assert check(tested, 'mmseg', model=model)[0] == 0


def test_images_of_one_and_four_channels_pass(check: Callable, tmp_path: Path) -> None:
    reader = dict(type='LoadImageFromFile', color_type='unchanged')
    for bands in (1, 4):
        image = noise(64, 64, bands)
        config = write_seg(tmp_path / f'seg{bands}', image=image)
        pipeline = [reader, *SEG_PIPELINE[1:]]
        assert check(config | dict(pipeline=pipeline), 'mmseg')[0] == 0
        config = write_coco(tmp_path / f'det{bands}', image=image)
        assert check(config | dict(pipeline=[reader]))[0] == 0


def test_images_that_ignore_empty_skips_are_listed(
    check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data', image=b'')
    reader = dict(type='LoadImageFromFile', ignore_empty=True)
    code, output = check(config | dict(pipeline=[reader]))
    assert code == 1
    assert '0.png: `ignore_empty` passes it over' in output


def test_a_lazy_import_config_with_relative_paths_is_read(
    check: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path / 'data', [[BOX], []])
    monkeypatch.chdir(tmp_path)
    text = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations

default_scope = None
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations)]
val_dataloader = dict(
    dataset=dict(
        type=CocoDataset,
        data_root='data',
        ann_file='ann.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=pipeline,
    )
)
"""
    code, output = check(text)
    assert code == 0
    assert '2 images read, nothing found' in output
    (tmp_path / 'data' / 'images' / '1.png').unlink()
    assert 'data/images/1.png: FileNotFoundError' in check(text)[1]
    empty = text.replace('metainfo=', 'filter_cfg=dict(min_size=999), metainfo=')
    with pytest.raises(ValueError, match='val_dataloader.dataset is empty'):
        check(empty)
    with pytest.raises(ValueError, match='data/gone.json does not exist'):
        check(text.replace('ann.json', 'gone.json'))


@pytest.mark.parametrize(('edit', 'expected'), REPEATED.values(), ids=REPEATED)
def test_ids_that_occur_twice_are_listed(
    edit: Callable, expected: str, check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data')
    edit_coco(config, edit)
    code, output = check(config)
    assert code == 1
    assert 'two of one id or name' in output
    assert f'data/ann.json: {expected}' in output


@pytest.mark.parametrize(('edit', 'expected'), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_annotation_is_listed(
    edit: Callable, expected: str, check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data', [[BOX], [BOX], [(99, 9, 9, 9)]])
    edit_coco(config, edit)
    code, output = check(config)
    assert code == 1
    assert f'data/ann.json: {expected}' in output
    if not expected.startswith('`'):
        assert 'annotation 2: ' in output
    # An entry without an id leaves references to it unresolved.
    if not expected.endswith('{'):
        assert 'there is no ' not in output


def test_the_check_goes_on_after_a_malformed_annotation(
    check: Callable, tmp_path: Path
) -> None:
    parts = [write_coco(tmp_path / name) for name in ('one', 'two', 'three')]
    edit_coco(parts[0], MALFORMED['no bbox'][0])
    edit_coco(parts[0], REPEATED['image'][0])
    edit_coco(parts[1], MALFORMED['box None'][0])
    (tmp_path / 'three' / 'images' / '1.png').unlink()
    code, output = check(dict(type='ConcatDataset', datasets=parts))
    assert code == 1
    assert "one/ann.json: annotation 1 has no ['bbox']" in output
    assert 'one/ann.json: images id 0 twice' in output
    assert 'two/ann.json: annotation 1: `bbox` is null' in output
    assert 'three/images/1.png: FileNotFoundError' in output


@pytest.mark.parametrize(('text', 'expected'), [('null', 'null'), ('[[1]]', r'[[1]]')])
def test_a_json_file_without_an_annotation_is_listed(
    text: str, expected: str, check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'ann.json').write_text(text)
    code, output = check(config)
    assert code == 1
    assert f'it holds {expected}, not an object' in output


def test_json_too_deep_is_refused(check: Callable, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'ann.json').write_text('[' * 9999 + ']' * 9999)
    with pytest.raises(ValueError, match=r'ann.json are nested too deep'):
        check(config)


@pytest.mark.parametrize('mask', ['text', 7, [7], [None], {'counts': None}])
def test_masks_of_other_kinds_are_listed(
    mask: Any, check: Callable, tmp_path: Path
) -> None:
    config = write_coco(tmp_path / 'data', segmentation=mask)
    code, output = check(config | dict(pipeline=MASK_PIPELINE))
    assert code == 1
    assert 'annotation 1 of image 1: ' in output


def test_malformed_panoptic_annotations_are_listed(tool: Any) -> None:
    image = dict(id=0, file_name='a', height=64, width=64)
    segment = dict(id=5, category_id=1, bbox=BOX, area=9)
    category = dict(id=1, name='a', isthing=1)
    lists = [dict(image_id=0, segments_info=[segment, None, segment | dict(bbox=[1])])]
    content = dict(images=[image], annotations=lists, categories=[category])
    faults = tool.coco_faults(content, panoptic=True)['keys']
    assert faults == [
        'image 0: segment number 2 is null, not an object',
        'image 0: segment 5: `bbox` is [1], not four numbers, [x, y, width, height]',
    ]
    segment |= dict(category_id=7)
    faults = tool.coco_faults(content, panoptic=True)['keys']
    assert 'image 0: segment 5: there is no category 7' in faults
    category.pop('isthing')
    faults = tool.coco_faults(content, panoptic=True)['keys']
    assert "category 1 has no ['isthing']" in faults


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_labels_that_8_bits_do_not_hold_are_listed(
    dtype: type, check: Callable, tmp_path: Path
) -> None:
    config = write_seg(tmp_path / 'data')
    for index, label in ((0, labels()), (1, labels() * 100)):
        # Whole numbers up to 255 are read correctly from any type.
        path = tmp_path / 'data' / 'labels' / f'{index}.png'
        wide = label.astype(dtype) * (1 if index == 0 else 3)
        Image.fromarray(wide).save(path, 'TIFF')
    code, output = check(config, 'mmseg')
    assert code == 1
    assert 'labels that 8 bits do not hold' in output
    assert (
        f'1.png: labels of type {np.dtype(dtype).name} that are read as 8 bits: 300'
        in (output.replace('300.0', '300'))
    )
    assert '0.png' not in output


@pytest.mark.parametrize('bands', [1, 3])
@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_images_of_16_bits_are_listed_if_the_pipeline_reads_8_bits(
    bands: int, suffix: str, check: Callable, tmp_path: Path
) -> None:
    image = noise(64, 64, bands, dtype=np.uint16)
    config = write_coco(tmp_path / 'data', image=image, suffix=suffix)
    code, output = check(config)
    assert code == 1
    assert f'0{suffix}: uint16 in the file, read as uint8' in output
    reader = dict(type='LoadImageFromFile', color_type='unchanged')
    assert check(config | dict(pipeline=[reader]))[0] == 0
