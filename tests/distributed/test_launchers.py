"""The launchers: processes that die, two machines, and slurm."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import ROOT, launch, variables

from kdtoolbox.datasets import PRESETS, make_digit_scenes

IP = shutil.which('ip') or 'ip'
HOSTS = ('10.213.87.1', '10.213.87.2')
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> Path:
    """Return a shipped recipe, cut to four small steps with a checkpoint after two."""
    folder = tmp_path_factory.mktemp('launchers')
    data = folder / 'digits'
    make_digit_scenes(data, PRESETS['seg'], train=16, val=4, workers=1)
    config = folder / 'recipe.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        "custom_imports = dict(imports=['failing'])\n"
        "custom_hooks = [dict(type='FailHook')]\n"
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_cfg = dict(max_iters=4)\n'
        'train_dataloader = dict(\n'
        '    batch_size=2, num_workers=0, persistent_workers=False,\n'
        f"    dataset=dict(data_root='{data}/'),\n)\n"
        'default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))\n'
        + seg_mend
    )
    return config


def test_a_rank_that_dies_ends_the_run_and_leaves_a_checkpoint_that_resumes(
    config: Path, tmp_path: Path
) -> None:
    command = ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path]
    code, output = launch(*command, FAIL='raise')
    assert code != 0
    assert 'RuntimeError: the second process fails on purpose' in output
    assert (tmp_path / 'iter_2.pth').exists()
    code, output = launch(*command, '--resume', FAIL='kill')
    assert code != 0
    assert 'SIGKILL' in output
    assert 'iter: 2' in output
    assert not (tmp_path / 'iter_4.pth').exists()
    code, output = launch(*command, '--resume')
    assert code == 0, output[-4000:]
    assert 'iter: 2' in output
    assert (tmp_path / 'iter_4.pth').exists()


def ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """Make two network namespaces that nothing but a pair of veth devices joins."""
    names = [f'kd{uuid.uuid4().hex[:8]}' for _ in HOSTS]
    devices = [f'v{name}' for name in names]
    try:
        try:
            for name in names:
                ip('netns', 'add', name)
            ip('link', 'add', devices[0], 'type', 'veth', 'peer', 'name', devices[1])
            for name, device, host in zip(names, devices, HOSTS, strict=True):
                ip('link', 'set', device, 'netns', name)
                ip('-n', name, 'link', 'set', device, 'name', 'lan0')
                ip('-n', name, 'addr', 'add', f'{host}/24', 'dev', 'lan0')
                ip('-n', name, 'link', 'set', 'lan0', 'up')
                ip('-n', name, 'link', 'set', 'lo', 'up')
        except FileNotFoundError:
            pytest.skip('network namespaces need the command ip of iproute2')
        except subprocess.CalledProcessError as error:
            pytest.skip(f'network namespaces cannot be made here: {error.stderr}')
        yield names
    finally:
        if shutil.which(IP):
            for name in names:
                subprocess.run([IP, 'netns', 'delete', name], capture_output=True)


def test_two_hosts_meet_and_train(
    config: Path, spaces: list[str], tmp_path: Path
) -> None:
    environment = variables(NNODES='2', MASTER_ADDR=HOSTS[0], GLOO_SOCKET_IFNAME='lan0')
    script = ['bash', 'tools/dist_train.sh', config, '1', '--work-dir', tmp_path]
    script += ['--cfg-options', 'train_cfg.max_iters=2']
    runs = [
        subprocess.Popen(
            [IP, 'netns', 'exec', name, *map(str, script)],
            cwd=ROOT,
            env=dict(environment, NODE_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, name in enumerate(spaces)
    ]
    try:
        outputs = [run.communicate(timeout=1800)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], '\n'.join(outputs)[-4000:]
    assert 'GPU number: 2' in outputs[0]
    written = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert written == ['iter_2.pth', 'student_iter_2.pth']


SRUN = """\
#!/usr/bin/env bash
# Starts the tasks of one machine with the variables that slurm sets.
set -euo pipefail
echo "srun $*"
while [[ $1 == -* ]]; do
    case $1 in
        --ntasks=*) tasks=${1#*=} ;;
        -p) shift ;;
    esac
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST='node[7-8]'
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & running+=($!)
done
for process in "${running[@]}"; do wait "$process"; done
"""
SCONTROL = """\
#!/usr/bin/env bash
[ "$*" = 'show hostnames node[7-8]' ] && printf '127.0.0.1\\nnode8\\n'
"""


def test_slurm_starts_the_processes(config: Path, tmp_path: Path) -> None:
    for name, text in dict(srun=SRUN, scontrol=SCONTROL).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = variables()
    code, output = launch(
        'bash', 'tools/slurm_train.sh', 'part', 'job', config, tmp_path / 'run',
        '--cfg-options', 'train_cfg.max_iters=2',
        PATH=f'{tmp_path}:{environment["PATH"]}', MASTER_PORT=environment['PORT'],
        GPUS='2', SRUN_ARGS='--gres=none --time=1:00', GLOO_SOCKET_IFNAME='lo',
    )  # fmt: skip
    assert code == 0, output[-4000:]
    asked = '-p part --job-name=job --gres=gpu:2 --ntasks=2 --ntasks-per-node=2'
    assert f'{asked} --cpus-per-task=5 --kill-on-bad-exit=1 --gres=none' in output
    assert 'GPU number: 2' in output
    assert (tmp_path / 'run/iter_2.pth').exists()
