"""Pictures, predictions and scores of tools/test.py, for each kind of config."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet import registry
from mmengine.registry import Registry

from kdtoolbox.configuration import load_config
from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.runs.student_config import write_student_config
from kdtoolbox.teachers.models import build_model

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e

# Types that a config in the newer style of mmdet gives as classes.
CLASSES = {
    'GFL': 'mmdet.models.detectors',
    'ATSSAssigner': 'mmdet.models.task_modules.assigners',
    'CocoDataset': 'mmdet.datasets',
    'CocoMetric': 'mmdet.evaluation.metrics',
    'DetLocalVisualizer': 'mmdet.visualization',
    'DetVisualizationHook': 'mmdet.engine.hooks',
    'LoadImageFromFile': 'mmcv.transforms',
    'PackDetInputs': 'mmdet.datasets.transforms',
    'LocalVisBackend': 'mmengine.visualization',
}

# Defaults of mmdet that are names, which only a scope resolves.
DEFAULTS = {
    "'type': 'mmdet.GFLHead'": "'bbox_coder': {'type': 'mmdet.DistancePointBBoxCoder'}",
    "'type': ATSSAssigner": "'iou_calculator': {'type': 'mmdet.BboxOverlaps2D'}",
}


def run(case: SimpleNamespace, folder: Path, *options: Any, **more: Any) -> str:
    config = more.get('config', case.config)
    command = [sys.executable, str(ROOT / 'tools/test.py'), str(config)]
    command += [
        str(case.weights),
        '--work-dir',
        str(folder / 'run'),
        *map(str, options),
    ]
    result = subprocess.run(
        command,
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode != 0) == more.get('fails', False), result.stderr[-4000:]
    return result.stdout + result.stderr


def pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob('*') if p.suffix in ('.png', '.jpg'))


def scores(folder: Path) -> dict:
    [path] = (folder / 'run').glob('[0-9]*/[0-9]*.json')
    values = json.loads(path.read_text().splitlines()[-1])
    return {key: value for key, value in values.items() if 'time' not in key}


@pytest.fixture(scope='module', params=PRESETS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Return a plain config, which inherits from none, and weights for it."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    make_digit_scenes(folder / 'digits', PRESETS[task], train=1, val=3, workers=1)
    config, weights = folder / 'config.py', folder / 'a.pth'
    write_student_config(
        load_config(ROOT / f'configs/digits/{task}_student.py'), config
    )
    text = config.read_text().replace(f'data/digits_{task}', str(folder / 'digits'))
    text = text.replace("'num_workers': 1", "'num_workers': 0")
    text = text.replace("'persistent_workers': True", "'persistent_workers': False")
    config.write_text(text.replace("'score_thr': 0.05", "'score_thr': 0.0"))
    torch.save(build_model(str(config)).state_dict(), weights)
    return SimpleNamespace(task=task, config=config, weights=weights)


@pytest.mark.parametrize('form', ['relative', 'absolute'])
def test_pictures_are_written_into_the_given_folder(
    form: str, case: SimpleNamespace, tmp_path: Path
) -> None:
    where = 'some/where' if form == 'relative' else tmp_path / 'some/where'
    run(case, tmp_path, '--show-dir', where)
    found = pictures(tmp_path)
    assert len(found) == 3
    assert {path.parent for path in found} == {tmp_path / 'some/where'}
    # The log and the scores stay in the work dir.
    assert {path for path in (tmp_path / 'some/where').iterdir()} == set(found)
    assert scores(tmp_path)


def test_other_backends_of_the_config_are_kept(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    backends = 'visualizer.vis_backends=[]'
    run(case, tmp_path, '--show-dir', 'here', '--cfg-options', backends)
    assert len(pictures(tmp_path / 'here')) == 3


def test_a_test_without_pictures_raises_an_error(
    case: SimpleNamespace, tmp_path: Path
) -> None:
    plain = tmp_path / 'plain.py'
    plain.write_text(
        f"_base_ = '{case.config}'\n"
        "blind = dict(_delete_=True, type='Blind')\n"
        'default_hooks = dict(visualization=blind)\n'
        "custom_imports = dict(imports=['blind'])\n"
    )
    # A hook of the user with the arguments of a hook that draws.
    (tmp_path / 'blind.py').write_text(
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class Blind(Hook):\n'
        '    def __init__(self, draw, show, wait_time, interval): pass\n'
    )
    told = run(case, tmp_path, '--show-dir', 'here', config=plain, fails=True)
    assert 'ValueError: --show-dir: the test has written no picture into here' in told


def test_mmseg_shows_or_writes(case: SimpleNamespace, tmp_path: Path) -> None:
    if case.task == 'seg':
        options = ('--show', '--show-dir', 'here')
        told = run(case, tmp_path, *options, fails=True)
        assert 'leave out --show or --show-dir' in told


def mmdet_names() -> set[str]:
    """Return the types that mmdet registers in its own scope."""
    names: set[str] = set()
    for kind in vars(registry).values():
        if isinstance(kind, Registry) and kind.scope == 'mmdet':
            kind.import_from_location()
            names |= kind.module_dict.keys()
    return names


def in_classes(config: Path) -> str:
    """Return a text config as one of mmdet's newer style, with no scope."""
    text = config.read_text()
    text = re.sub(r'^default_scope = .*\n', '', text, flags=re.MULTILINE)
    imports = [f'from {CLASSES[name]} import {name}' for name in CLASSES]
    for name in CLASSES:
        text = text.replace(f"'type': '{name}'", f"'type': {name}")
    for name in mmdet_names():
        text = text.replace(f"'type': '{name}'", f"'type': 'mmdet.{name}'")
    for owner, more in DEFAULTS.items():
        text = text.replace(owner, f'{more}, {owner}')
    return '\n'.join([*imports, text])


@pytest.mark.parametrize('tta', [False, True])
def test_types_may_be_classes_or_names(
    tta: bool, case: SimpleNamespace, tmp_path: Path
) -> None:
    if case.task == 'seg':
        pytest.skip('mmseg has no such configs')
    classes = tmp_path / 'classes.py'
    classes.write_text(in_classes(case.config))
    results = []
    for config in (case.config, classes):
        folder = tmp_path / config.stem
        folder.mkdir()
        options = ('--show-dir', 'here', '--out', 'a.pkl', *['--tta'] * tta)
        run(case, folder, *options, config=config)
        assert len(pictures(folder / 'here')) == 3
        results.append((scores(folder), pickle.loads((folder / 'a.pkl').read_bytes())))
    assert results[0][0] == results[1][0]
    for left, right in zip(results[0][1], results[1][1], strict=True):
        pair = [sample['pred_instances']['scores'] for sample in (left, right)]
        assert torch.equal(*pair)
        assert len(pair[0])
