"""Runs that are killed in a validation, started twice, or lose their launcher."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> Path:
    """Return a shipped recipe, cut to four small steps with two validations."""
    folder = tmp_path_factory.mktemp('killed')
    data = folder / 'digits'
    make_digit_scenes(data, PRESETS['seg'], train=16, val=4, workers=1)
    loader = 'batch_size=2, num_workers=0, persistent_workers=False'
    config = folder / 'recipe.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        "custom_imports = dict(imports=['dying'])\n"
        "custom_hooks = [dict(type='DieHook')]\n"
        'train_cfg = dict(max_iters=4, val_interval=2)\n'
        'randomness = dict(seed=0)\n'
        f"train_dataloader = dict({loader}, dataset=dict(data_root='{data}/'))\n"
        'val_dataloader = dict(num_workers=0, persistent_workers=False,\n'
        f"    dataset=dict(data_root='{data}/'))\n"
        'default_hooks = dict(checkpoint=dict(\n'
        "    interval=2, max_keep_ckpts=-1, save_best='aAcc', rule='greater'))\n"
        + seg_mend
    )
    return config


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    runs: list[subprocess.Popen] = []

    def run(*command: str | Path, **changes: str) -> subprocess.Popen:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = str(probe.getsockname()[1])
        path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))
        own = dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=path)
        runs.append(
            subprocess.Popen(
                list(map(str, command)),
                cwd=ROOT,
                env=os.environ | own | dict(PORT=port, DIE='') | changes,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return runs[-1]

    yield run
    for one in runs:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
            one.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def test_a_run_killed_in_a_validation_ends_with_the_files_of_an_uninterrupted_run(
    config: Path, start: Callable, tmp_path: Path
) -> None:
    train = [sys.executable, 'tools/train.py', config, '--work-dir']
    for iteration in (2, 4):
        folder = tmp_path / f'killed_{iteration}'
        run = start(*train, folder, DIE=f'val:{iteration}')
        output = run.communicate()[0]
        assert run.returncode == -signal.SIGKILL, output[-4000:]
        run = start(*train, folder, '--resume')
        output = run.communicate()[0]
        assert run.returncode == 0, output[-4000:]
        assert f'validating the checkpoint of iteration {iteration}' in output
    run = start(*train, tmp_path / 'whole')
    assert run.wait() == 0
    [best] = (tmp_path / 'whole').glob('best_*.pth')
    expected = torch.load(best, weights_only=False)['state_dict']
    for iteration in (2, 4):
        folder = tmp_path / f'killed_{iteration}'
        assert names(folder) == names(tmp_path / 'whole')
        found = torch.load(folder / best.name, weights_only=False)['state_dict']
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_only_one_of_two_trainings_in_one_folder_starts(
    config: Path, start: Callable, tmp_path: Path
) -> None:
    command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path]
    runs = [start(*command) for _ in range(2)]
    outputs = [run.communicate()[0] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 2], '\n'.join(outputs)[-4000:]
    assert 'a training that still runs' in outputs[codes.index(2)]


def processes_with(mark: str) -> dict[int, str]:
    found = {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if mark.encode() in (path / 'environ').read_bytes():
                found[int(path.name)] = (path / 'cmdline').read_text()
        except OSError:
            # It ended meanwhile, or is not ours.
            continue
    return found


@pytest.mark.skipif(not Path('/proc').exists(), reason='looks into /proc')
def test_ranks_exit_when_their_launcher_is_killed(
    config: Path, start: Callable, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    command = ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path]
    endless = ['--cfg-options', 'train_cfg.max_iters=100000']
    run = start(*command, *endless, MARK=mark)
    end = time.monotonic() + 1200
    while not (tmp_path / 'iter_2.pth').exists() and time.monotonic() < end:
        assert run.poll() is None, run.stdout.read()[-4000:]
        time.sleep(0.2)
    known = processes_with(mark)
    launcher = [pid for pid, line in known.items() if 'torch.distributed.run' in line]
    assert len(launcher) == 1
    assert len(known) >= 4
    os.kill(launcher[0], signal.SIGKILL)
    end = time.monotonic() + 300
    while processes_with(mark) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_with(mark) == {}
