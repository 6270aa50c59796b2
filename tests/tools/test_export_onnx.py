"""ONNX files of `tools/export_onnx.py`, compared with the models of mmdet and mmseg."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.configuration import load_config
from kdtoolbox.runs.student_config import write_student_config
from kdtoolbox.teachers.models import build_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/export_onnx.py'
DOCS = ROOT / 'docs/deployment.md'
Toy = SimpleNamespace
BOUND = 1e-4
pytestmark = pytest.mark.e2e
onnx, onnxruntime = map(pytest.importorskip, ('onnx', 'onnxruntime'))


def run(*command: Any, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, str(TOOL), *map(str, command)],
        cwd=cwd,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def example(number: int, folder: Path) -> dict[str, Any]:
    """Run a Python example of the documentation inside a folder."""
    code = DOCS.read_text().split('```python\n')[1 + number].split('```')[0]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, names)
    return names


def write_image(data: dict, folder: Path) -> None:
    image = data['inputs'][0].permute(1, 2, 0).numpy()
    assert cv2.imwrite(str(folder / 'image.png'), image)


def pair(task: str, folder: Path) -> Any:
    """Write a trained model as `student.py` and `student.pth`; return it."""
    cfg = load_config(ROOT / f'configs/digits/{task}_teacher.py')
    model = build_model(cfg)
    weights = ROOT / f'configs/digits/{task}_teacher.safetensors'
    state = load_checkpoint(weights)['state_dict']
    load_strictly(model, state, str(weights))
    torch.save(dict(state_dict=state, meta={}), folder / 'student.pth')
    write_student_config(cfg, folder / 'student.py')
    return model.eval()


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    error = np.abs(found - expected.numpy()).max()
    return bool(error <= BOUND * expected.abs().max())


def test_a_segmentor_gives_the_logits_of_mmseg(tmp_path: Path, toy: Toy) -> None:
    model = pair('seg', tmp_path)
    output = run('student.py', 'student.pth', 'student.onnx', cwd=tmp_path)
    assert "images ['N', 3, 'H', 'W']" in output
    assert "logits ['N', 11, 'H', 'W']" in output
    data = toy.seg_data(((192, 320),))
    write_image(data, tmp_path)
    names = example(0, tmp_path)
    with torch.no_grad():
        [found] = model.test_step(data)
    assert close(names['logits'][0], found.seg_logits.data)
    assert np.array_equal(names['classes'][0], found.pred_sem_seg.data[0])
    assert len(np.unique(names['classes'])) > 1


def test_a_detector_gives_the_boxes_of_mmdet(tmp_path: Path, toy: Toy) -> None:
    model = pair('det', tmp_path)
    output = run('student.py', 'student.pth', 'student.onnx', cwd=tmp_path)
    assert "bbox_preds.3 ['N', 36, " in output
    # Both sides of the image are padded.
    data = toy.det_data(((144, 208),))
    write_image(data, tmp_path)
    found = example(1, tmp_path)['found']
    with torch.no_grad():
        expected = model.test_step(data)[0].pred_instances
    assert len(expected)
    assert torch.equal(found.labels, expected.labels)
    assert close(found.scores.numpy(), expected.scores)
    assert close(found.bboxes.numpy(), expected.bboxes)


def segformer() -> dict:
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[1.0], std=[9.0]),
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_stages=2,
            num_layers=[1, 1],
            num_heads=[1, 2],
            patch_sizes=[7, 3],
            strides=[4, 2],
            sr_ratios=[4, 2],
            out_indices=(0, 1),
        ),
        decode_head=dict(
            type='SegformerHead',
            in_channels=[8, 16],
            in_index=[0, 1],
            channels=8,
            num_classes=3,
            align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )
    return dict(default_scope='mmseg', model=model)


def retinanet(toy: Toy) -> dict:
    config = toy.gfl()
    head = dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32]
        ),
    )
    config['model'] |= dict(type='RetinaNet', bbox_head=head)
    return config


def run_here(config: dict, folder: Path, *options: str) -> Any:
    """Run the tool in this process on random weights; return the model."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    torch.save(dict(state_dict=model.state_dict()), folder / 'a.pth')
    Config(config).dump(folder / 'a.py')
    files = [str(folder / name) for name in ('a.py', 'a.pth', 'a.onnx')]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['export_onnx.py', *files, *options])
        runpy.run_path(str(TOOL), run_name='__main__')
    return model


def outputs_of(folder: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / 'a.onnx')
    return session.run(None, dict(images=images.numpy()))


@pytest.mark.parametrize('kind', ['segformer', 'retinanet'])
def test_other_networks_agree_at_other_sizes_and_batches(
    kind: str, tmp_path: Path, toy: Toy
) -> None:
    config = segformer() if kind == 'segformer' else retinanet(toy)
    model = run_here(config, tmp_path, '--opset', '19')
    opset = onnx.load(tmp_path / 'a.onnx').opset_import[0]
    assert (opset.domain, opset.version) == ('', 19)
    for shape in ((3, 3, 160, 96), (1, 3, 64, 224)):
        images = torch.randint(256, shape).float()
        inputs = model.data_preprocessor(dict(inputs=[*images]))['inputs']
        with torch.no_grad():
            if kind == 'segformer':
                expected = [model.encode_decode(inputs, [dict(img_shape=shape[2:])])]
            else:
                expected = sum(model(inputs, mode='tensor'), [])
        found = outputs_of(tmp_path, images)
        assert all(map(close, found, expected))
        assert len(found) == len(expected)


def test_a_pooling_to_fixed_cells_needs_a_size(
    tmp_path: Path, toy: Toy, capsys: pytest.CaptureFixture
) -> None:
    config = toy.segmentor()
    config['model']['decode_head']['pool_scales'] = (1, 3)
    with pytest.raises(SystemExit, match='not written.*add --size H W'):
        run_here(config, tmp_path)
    assert not (tmp_path / 'a.onnx').exists()
    model = run_here(config, tmp_path, '--size', '64', '96')
    assert "images ['N', 3, 64, 96]" in capsys.readouterr().out
    images = torch.randint(256, (3, 3, 64, 96)).float()
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=[*images]))['inputs']
        expected = model.encode_decode(inputs, [dict(img_shape=(64, 96))])
    assert close(outputs_of(tmp_path, images)[0], expected)


def test_what_cannot_be_written_is_told_at_once(
    tmp_path: Path, toy: Toy, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match='2'):
        run_here(toy.faster_rcnn(), tmp_path)
    assert re.search(
        'a FasterRCNN is neither .* with mmdeploy', capsys.readouterr().err
    )
    deformed = toy.gfl()
    deformed['model']['bbox_head']['conv_cfg'] = dict(type='DCN', deform_groups=1)
    with pytest.raises(SystemExit, match='2'):
        run_here(deformed, tmp_path)
    told = capsys.readouterr().err
    assert re.search('torch cannot export this GFL.* mmdeploy', told)
    (tmp_path / 'a.onnx').write_text('mine')
    with pytest.raises(SystemExit):
        run_here(toy.gfl(), tmp_path)
    assert 'a.onnx exists; name another file or add --over' in capsys.readouterr().err
    assert (tmp_path / 'a.onnx').read_text() == 'mine'
