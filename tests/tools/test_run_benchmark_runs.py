"""tools/run_benchmark.py from another folder: killed, resumed and called again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e

STUDENT = f"""
_base_ = '{ROOT}/configs/digits/seg_student.py'
loader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='data/'))
train_dataloader = val_dataloader = test_dataloader = loader
# With weights, mmsegmentation 1.2.2 fails at an ignored pixel.
model = dict(decode_head=dict(loss_decode=dict(class_weight=None)))
train_cfg = dict(max_iters=2, val_interval=100)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
"""
SUITE = f"""
student = 'student.py'
teacher = dict(
    config='{ROOT}/configs/digits/seg_teacher.py',
    checkpoint='{ROOT}/configs/digits/seg_teacher.safetensors',
    cache=dict(path='caches', views=1, dtype='float32'))
metric = 'mIoU'
seeds = [3]
rows = dict(
    student=dict(), cwd=dict(method='cwd', at='neck'),
    # It compares boxes, which a segmentor has not.
    ld=dict(method='ld'))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_digit_scenes(tmp_path / 'data', PRESETS['seg'], train=2, val=1, workers=1)
    (tmp_path / 'student.py').write_text(STUDENT)
    (tmp_path / 'mine.py').write_text(SUITE)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Callable[..., subprocess.Popen]:
    def start(*flags: str) -> subprocess.Popen:
        tool = [sys.executable, str(ROOT / 'tools/run_benchmark.py'), 'mine.py']
        return subprocess.Popen(
            [*tool, '--work-dir', 'work', '--jobs', '1', *flags],
            cwd=folder,
            env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_a_killed_benchmark_goes_on_where_it_stopped_and_runs_nothing_twice(
    folder: Path, start: Callable
) -> None:
    tool = start('--rows', 'student')
    end = time.monotonic() + 600
    while not [*folder.glob('work/student/*/iter_1.pth')] and time.monotonic() < end:
        assert tool.poll() is None, tool.stdout.read()
        time.sleep(0.05)
    tool.send_signal(signal.SIGTERM)
    tool.communicate()
    assert not (folder / 'mine.json').exists()

    tool = start()
    output = tool.communicate()[0]
    assert tool.returncode == 1, output
    [log] = folder.glob('work/student/*/output.log')
    assert 'resumed epoch: 0, iter: 1' in log.read_text()
    rows = {row['row']: row for row in json.loads((folder / 'mine.json').read_text())}
    assert [(row['row'], row['status']) for row in rows.values()] == [
        *[('student', 'done'), ('cwd', 'done'), ('ld', 'failed')]
    ]
    assert rows['cwd']['iterations'] == 2
    assert rows['cwd']['score'] > 0
    assert [*folder.glob('work/cwd/*/student_iter_2.pth')]
    assert [*folder.glob('caches/*/*/*.safetensors')]
    assert '\n' not in rows['ld']['reason']
    assert 'ld, seed 3 failed: ' in output
    assert (folder / 'mine.csv').read_text().count('\n') == 4
    assert (folder / 'mine.png').exists()

    before = (folder / 'mine.json').read_text()
    tool = start()
    output = tool.communicate()[0]
    assert '0 runs, 1 at once' in output, output
    assert (folder / 'mine.json').read_text() == before
    assert tool.returncode == 1

    tool = start('--cost', '--rows', 'student', 'cwd')
    output = tool.communicate()[0]
    assert tool.returncode == 0, output
    costs = json.loads((folder / 'mine.costs.json').read_text())
    assert [*costs] == ['cwd']
    assert costs['cwd']['distill_step'] > costs['cwd']['student_step'] > 0
    cost = f'{costs["cwd"]["cost"]:.3f}'
    assert cost in (folder / 'mine.csv').read_text()
    assert (folder / 'mine.json').read_text() == before
