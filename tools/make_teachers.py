"""Train the teachers of configs/digits and put their weights beside the configs."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from kdtoolbox.checkpoints.weights import load_checkpoint, write_student
from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tasks', nargs='+', choices=PRESETS, default=list(PRESETS))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    # The configs name their data from the root of the repo.
    os.chdir(ROOT)
    # Sums of floats depend on the number of threads; one gives the shipped weights.
    environment = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    # A training enters no folder with results.
    folders = Path('work_dirs/teachers', time.strftime('%Y%m%d_%H%M%S'))
    runs = []
    for task in args.tasks:
        make_digit_scenes(f'data/digits_{task}', PRESETS[task])
        folder = folders / task
        command = [
            sys.executable,
            'tools/train.py',
            f'configs/digits/{task}_teacher.py',
        ]
        command += ['--work-dir', str(folder), '--cfg-options']
        command += [f'randomness.seed={args.seed}']
        runs.append((task, folder, subprocess.Popen(command, env=environment)))
    for task, folder, process in runs:
        if process.wait():
            raise SystemExit(f'the training of the {task} teacher failed')
        weights = Path((folder / 'last_checkpoint').read_text().strip())
        target = Path(f'configs/digits/{task}_teacher.safetensors')
        write_student(load_checkpoint(weights), target)
        print(f'{weights} written to {target}')


if __name__ == '__main__':
    main()
