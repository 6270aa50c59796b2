import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_data import BOX, encoded, labels, noise, write_coco, write_seg
from mmengine.registry import DefaultScope

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
    """A function that checks a data set and returns exit code and output."""
    monkeypatch.setenv('COLUMNS', '400')
    scopes = dict(DefaultScope._instance_dict)

    def run(config: dict, scope: str = 'mmdet', workers: int = 0) -> tuple[int, str]:
        path = tmp_path / 'config.py'
        path.write_text(
            f"default_scope = '{scope}'\nval_dataloader = dict(dataset={config!r})\n"
        )
        command = [str(PATH), str(path), '--split', 'val', '--workers', str(workers)]
        monkeypatch.setattr(sys, 'argv', command)
        return tool.main(), capsys.readouterr().out

    yield run
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def test_good_data_give_nothing(check: Callable, tmp_path: Path) -> None:
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


def test_a_cut_image_that_the_loader_would_pass_is_listed(
    check: Callable, tmp_path: Path
) -> None:
    content = encoded(noise(64, 64, 3), '.jpg')[:-200]
    config = write_coco(tmp_path / 'data', [[BOX]], content, suffix='.jpg')
    # No loader stands for the OpenCVs that paint grey what is missing.
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
    assert faults([])['keys'][0] == 'there is no `images`'


@pytest.mark.parametrize(
    ('label', 'told'),
    [
        (labels() + 2, '[4, 5] of 4 classes'),
        (labels(32, 48), '(32, 48), not (64, 64)'),
        (np.full((64, 64), 256, np.uint16), 'up to 256'),
        (b'', 'UnidentifiedImageError'),
    ],
)
def test_wrong_label_maps_are_listed(
    label: Any, told: str, check: Callable, tmp_path: Path
) -> None:
    code, output = check(write_seg(tmp_path / 'data', label=label), 'mmseg')
    assert code == 1
    assert told in output


def test_a_cut_annotation_is_refused(check: Callable, tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'ann.json').write_text('{"images": [')
    with pytest.raises(ValueError, match='no whole JSON'):
        check(config)
