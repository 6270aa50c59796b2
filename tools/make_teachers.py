"""Train the teachers of configs/digits and write their weights beside the configs."""

import argparse
import os
import time
from pathlib import Path

from jobs import ROOT, Job, console, run_jobs

from kdtoolbox.checkpoints.student_export import write_student
from kdtoolbox.checkpoints.weights import load_checkpoint
from kdtoolbox.configuration import load_config
from kdtoolbox.datasets import PRESETS, make_digit_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tasks', nargs='+', choices=PRESETS, default=list(PRESETS))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    # The configs name their data from the root of the repo.
    os.chdir(ROOT)
    # A training refuses a folder with results.
    folders = Path('work_dirs/teachers', time.strftime('%Y%m%d_%H%M%S'))
    jobs = []
    for task in args.tasks:
        make_digit_scenes(f'data/digits_{task}', PRESETS[task])
        config = f'configs/digits/{task}_teacher.py'
        options = ('--cfg-options', f'randomness.seed={args.seed}')
        iterations = load_config(config).max_iters
        command = ('tools/train.py', config, *options)
        jobs.append(Job(task, folders / task, command, iterations))
    run_jobs(jobs, 'train')
    for job in jobs:
        weights = Path((job.work_dir / 'last_checkpoint').read_text().strip())
        target = Path(f'configs/digits/{job.label}_teacher.safetensors')
        write_student(load_checkpoint(weights), target)
        console.print(f'{weights} written to {target}')


if __name__ == '__main__':
    main()
