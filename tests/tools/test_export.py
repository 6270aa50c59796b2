"""The exported pair of weights and config, in a process that has no kdtoolbox."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = dict(det='mmdet', seg='mmseg')
pytestmark = pytest.mark.e2e

# What a user of mmdet writes who has never heard of kdtoolbox.
DET = """
from mmdet.apis import DetInferencer, inference_detector, init_detector
model = init_detector(config, weights, device='cpu')
found = inference_detector(model, image).pred_instances
again = DetInferencer(config, weights, device='cpu')(image)['predictions'][0]
assert np.allclose(again['scores'], found.scores.numpy())
answer = found.scores, found.bboxes, found.labels
"""
SEG = """
from mmseg.apis import MMSegInferencer, inference_model, init_model
model = init_model(config, weights, device='cpu')
found = inference_model(model, image)
again = MMSegInferencer(config, weights, device='cpu')(image)['predictions']
assert np.array_equal(again, found.pred_sem_seg.data[0].numpy())
answer = (found.seg_logits.data,)
"""
USE = """
import socket, sys
import numpy as np, torch
sys.modules['kdtoolbox'] = None
def refuse(*arguments, **options):
    raise AssertionError('nothing is to be fetched')
socket.socket.connect = refuse
config, weights, image, out = sys.argv[1:]
{code}
assert model.dataset_meta['classes'] == ('mine', *'123456789'), model.dataset_meta
torch.save(answer, out)
"""


def run(*command: Any, cwd: Path, fails: bool = False) -> str:
    # In isolation: neither the source tree nor an installed package is found.
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    environment.pop('PYTHONPATH', None)
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (result.returncode != 0) == fails, result.stderr[-4000:]
    return result.stdout + result.stderr


def library_tool(task: str, name: str) -> Path:
    spec = find_spec(LIBRARY[task])
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / '.mim/tools' / f'{name}.py'


@pytest.fixture(scope='module', params=PRESETS)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    seg_mend: str,
) -> SimpleNamespace:
    """Return a distillation's config and checkpoint, and the pair exported from it."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = folder / 'digits'
    make_digit_scenes(data, PRESETS[task], train=4, val=2, workers=1)
    config = folder / 'distilled.py'
    text = f"_base_ = '{ROOT}/configs/digits/{task}_distilled.py'\n"
    text += f"root = dict(data_root='{data}/')\n"
    text += 'train_dataloader = dict(batch_size=2, dataset=root)\n'
    text += 'val_dataloader = dict(batch_size=2, dataset=root)\n'
    text += 'test_dataloader = val_dataloader\n'
    text += 'train_cfg = dict(max_iters=1, val_interval=1)\n'
    student = dict(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='https://x.invalid/'))
    )
    if task == 'det':
        text += f"val_evaluator = dict(ann_file='{data}/annotations/"
        text += "instances_val2017.json')\ntest_evaluator = val_evaluator\n"
        # A detector with random weights has low scores.
        student['test_cfg'] = dict(score_thr=0.0)
    text += f'model = dict(student={student})\n{seg_mend if task == "seg" else ""}'
    config.write_text(text)
    cfg = load_config(config)
    resolve_paths(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        distiller = MODELS.build(cfg.model)
    distiller.cfg = cfg
    classes = ('mine', *'123456789')
    palette = [[7, 7, 7]] * 10
    meta = dict(
        cfg=cfg.pretty_text, dataset_meta=dict(classes=classes, palette=palette)
    )
    distiller.dataset_meta = meta['dataset_meta']
    checkpoint = folder / 'iter_1.pth'
    torch.save(dict(state_dict=distiller.state_dict(), meta=meta), checkpoint)
    weights = folder / 'out/student.pth'
    weights.parent.mkdir()
    output = run(
        ROOT / 'tools/export_student.py', checkpoint, weights, '--config', config,
        cwd=ROOT,
    )  # fmt: skip
    image = next(data.glob('val2017/*.png'))
    return SimpleNamespace(**locals())


def expected(case: SimpleNamespace) -> tuple:
    scope = DefaultScope.overwrite_default_scope(case.cfg.default_scope)
    with scope, torch.no_grad():
        if case.task == 'det':
            from mmdet.apis import inference_detector

            found = inference_detector(case.distiller.eval(), str(case.image))
            found = found.pred_instances
            return found.scores, found.bboxes, found.labels
        from mmseg.apis import inference_model

        found = inference_model(case.distiller.eval(), str(case.image))
        return (found.seg_logits.data,)


def test_mmdet_and_mmseg_run_the_exported_config_and_weights(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    script = tmp_path / 'use.py'
    script.write_text(USE.format(code=DET if case.task == 'det' else SEG))
    out = tmp_path / 'answer.pth'
    pair = case.weights.with_suffix('.py'), case.weights
    run(script, *pair, case.image, out, cwd=tmp_path)
    answer = torch.load(out)
    assert len(answer[0])
    assert all(map(torch.equal, answer, expected(case)))


@pytest.mark.parametrize('name', ['test', 'train'])
def test_the_tools_of_the_libraries_run_the_pair(
    name: str, case: SimpleNamespace, tmp_path: Path
) -> None:
    config = case.weights.with_suffix('.py')
    command = [library_tool(case.task, name), config, '--work-dir', tmp_path]
    if name == 'test':
        command.insert(2, case.weights)
    # In an environment where mmengine cannot download anything.
    options = ['model.backbone.init_cfg=None', 'train_dataloader.num_workers=0']
    options += ['train_dataloader.persistent_workers=False']
    output = run(*command, '--cfg-options', *options, cwd=tmp_path)
    assert ('coco/bbox_mAP' if case.task == 'det' else 'mIoU') in output
    assert (tmp_path / 'iter_1.pth').exists() == (name == 'train')


def test_without_a_config_the_weights_alone_are_written(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / 'student.pth'
    output = run(ROOT / 'tools/export_student.py', case.checkpoint, out, cwd=ROOT)
    assert 'add --config' in output
    assert list(tmp_path.iterdir()) == [out]


def test_a_config_that_does_not_fit_is_refused(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    other = (
        f'{ROOT}/configs/digits/{dict(det="seg", seg="det")[case.task]}_distilled.py'
    )
    command = [ROOT / 'tools/export_student.py', case.checkpoint, tmp_path / 'a.pth']
    output = run(*command, '--config', other, cwd=ROOT, fails=True)
    assert 'does not fit' in output
    assert not list(tmp_path.iterdir())


def test_neither_file_of_a_pair_is_overwritten(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / 'a.py').write_text('mine')
    command = [ROOT / 'tools/export_student.py', case.checkpoint, tmp_path / 'a.pth']
    output = run(*command, '--config', case.config, cwd=ROOT, fails=True)
    assert 'a.py exists; name another file or add --overwrite' in output
    assert not (tmp_path / 'a.pth').exists()


def test_what_cannot_be_exported_is_told_at_once(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    tool, target = ROOT / 'tools/export_student.py', tmp_path / 'gone/a.pth'
    output = run(tool, case.checkpoint, target, cwd=ROOT, fails=True)
    assert f'the folder {tmp_path}/gone of OUT does not exist; make it' in output
    assert 'Traceback' not in output
    for options in ([], ['--config', case.config]):
        command = [tool, case.weights, tmp_path / 'a.pth', *options]
        output = run(*command, cwd=ROOT, fails=True)
        assert "student.pth' holds no student" in output
    assert not list(tmp_path.iterdir())
