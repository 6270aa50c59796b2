"""tools/inspect_config.py, and what tools/train.py tells before a training."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs/digits'
BROKEN = f"""_base_ = '{DIGITS}/det_distilled.py'
model = dict(
    recorders=dict(student=dict(fpn='nek')),
    connectors=dict(aligned=dict(in_channels=64)),
    losses=dict(loss_cwd=dict(tau='2')),
)
"""
TOLD = """3 faults:
1. model.losses.loss_cwd.tau: expected a number, got the text '2'; write tau=2 without \
quotes
2. model.recorders.student.fpn: GFL has no module 'nek'; nearest: neck
   did you mean neck? recorders=dict(student=dict(fpn='neck'))
3. model.connectors.aligned: expected levels of [64, 64, 64, 64] channels, the wire \
has [32, 32, 32, 32]; set in_channels=32
   connectors=dict(aligned=dict(in_channels=32))
"""
PAIR = """_base_ = '{source}'
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(config='{source}', checkpoint='not_read.pth'),
    recorders=dict(student=dict(made='{path}'), teacher=dict(made='{path}')),
    losses=dict(
        loss_a=dict(type='CWDLoss', student='student.made', teacher='teacher.made')
    ),
)
"""
FAMILIES = {
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 'neck',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': 'neck',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': 'neck',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': 'neck',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': (
        'decode_head.conv_seg'
    ),
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py': (
        'decode_head.bottleneck'
    ),
}


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = ROOT / 'tools/inspect_config.py'
    spec = spec_from_file_location('inspect_config', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Call the tool in this process; return its exit status and what it prints."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['tool', *map(str, arguments)])
        try:
            status = tool.main()
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.mark.parametrize(
    'name', ['det_distilled', pytest.param('seg_distilled', marks=pytest.mark.e2e)]
)
def test_a_right_recipe_is_shown(call, name: str) -> None:
    status, printed = call(DIGITS / f'{name}.py', '--depth', 1)
    assert status == 0
    assert printed.endswith('No fault found.\n')
    for title in ('student: ', 'teacher: ', 'losses.loss_cwd', 'what differs'):
        assert title in printed
    assert 'lateral_convs' not in printed


@pytest.mark.e2e
@pytest.mark.parametrize('path', sorted(DIGITS.glob('*.py')), ids=lambda p: p.stem)
def test_the_shipped_digits_have_no_fault(call, path: Path) -> None:
    status, printed = call(path)
    assert status == 0, printed
    assert 'not tried' not in printed


@pytest.mark.e2e
@pytest.mark.parametrize(('source', 'path'), FAMILIES.items())
def test_recipes_of_many_families_have_no_fault(
    call, source: str, path: str, tmp_path: Path
) -> None:
    config = tmp_path / 'pair.py'
    config.write_text(PAIR.format(source=source, path=path))
    status, printed = call(config)
    assert status == 0, printed
    assert 'not tried' not in printed
    assert 'fits' in printed


def test_a_broken_recipe_is_shown_with_all_faults(call, tmp_path: Path) -> None:
    config = tmp_path / 'broken.py'
    config.write_text(BROKEN)
    status, printed = call(config, '--find', 'fpn_convs.0.conv')
    assert status == 2
    assert printed.endswith(TOLD)
    assert 'neck.fpn_convs.0.conv' in printed
    rows = [line.split('│') for line in printed.splitlines() if '│' in line]
    verdicts = {row[1].strip(): row[5].strip() for row in rows if len(row) == 7}
    assert verdicts['recorders.*.fpn'] == 'fault 2'
    assert verdicts['connectors.aligned'] == 'fault 3'


def test_what_no_module_matches_is_told(call) -> None:
    status, printed = call(DIGITS / 'det_student.py', '--find', 'nothing')
    assert status == 0
    assert "model: no module 'nothing'" in printed


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (
            ['model.sources.5.stage=2'],
            '--cfg-options model.sources.5.stage: model.sources has 1 entry, counted '
            'from 0; use model.sources.0',
        ),
        (['model.student=none.py'], "model.student: there is no file 'none.py'"),
    ],
)
def test_a_wrong_option_is_told_in_one_message(call, options: list, told: str) -> None:
    status, printed = call(DIGITS / 'det_crosskd.py', '--cfg-options', *options)
    assert status == 2
    assert told in printed
    assert 'Traceback' not in printed


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )


@pytest.mark.e2e
def test_the_training_tells_the_same_before_it_starts(tmp_path: Path) -> None:
    config = tmp_path / 'broken.py'
    config.write_text(BROKEN)
    inspected = command('tools/inspect_config.py', config)
    assert inspected.returncode == 2
    assert inspected.stdout.endswith(TOLD)
    trained = command('tools/train.py', config, '--work-dir', tmp_path / 'run')
    assert trained.returncode == 2
    assert trained.stderr.endswith(TOLD)
    assert 'Traceback' not in trained.stderr
    work_dir = tmp_path / 'other'
    traced = command('tools/train.py', config, '--work-dir', work_dir, '--traceback')
    assert traced.returncode == 2
    assert traced.stderr.endswith(TOLD)
    assert 'Traceback (most recent call last)' in traced.stderr


@pytest.mark.e2e
def test_one_of_two_processes_lists_all_faults(tmp_path: Path) -> None:
    config = tmp_path / 'broken.py'
    config.write_text(BROKEN)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    launched = subprocess.run(
        ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path / 'run'],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=port),
        capture_output=True,
        text=True,
    )
    assert launched.returncode != 0
    assert launched.stderr.count(TOLD) == 1
    assert launched.stderr.count('shows the code') == 1


@pytest.mark.e2e
def test_a_fault_of_the_work_dir_is_one_message(tmp_path: Path) -> None:
    (tmp_path / 'epoch_1.pth').touch()
    config = DIGITS / 'det_distilled.py'
    result = command('tools/train.py', config, '--work-dir', tmp_path)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f'{tmp_path} contains results')
    assert 'Traceback' not in result.stderr


@pytest.mark.e2e
@pytest.mark.parametrize('tool_name', ['test.py', 'export_student.py'])
def test_other_tools_tell_one_message(tmp_path: Path, tool_name: str) -> None:
    checkpoint = tmp_path / 'cut.pth'
    checkpoint.write_bytes(json.dumps(dict(state_dict=1)).encode())
    arguments = [DIGITS / 'det_distilled.py', checkpoint]
    if tool_name == 'export_student.py':
        arguments = [checkpoint, tmp_path / 'out.pth']
    result = command(f'tools/{tool_name}', *arguments)
    assert result.returncode == 2
    assert 'cut.pth' in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr
