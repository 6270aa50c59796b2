"""Train the weights of configs/digits and write them beside the configs.

The one-stage detectors come first: a two-stage detector and a segmentor start from the
backbone of the detector of their width.
"""

import argparse
import os
import time
from pathlib import Path

from jobs import ROOT, Job, console, run_jobs

from kdtoolbox.checkpoints.student_export import write_student
from kdtoolbox.checkpoints.weights import load_checkpoint
from kdtoolbox.configuration import load_config
from kdtoolbox.datasets import PRESETS, make_digit_scenes

DIGITS = Path('configs/digits')


def job_of(name: str, folder: Path, seed: int) -> Job:
    """Return the training of one config of configs/digits."""
    config = DIGITS / f'{name}.py'
    command = ('tools/train.py', str(config), '--cfg-options')
    iterations = load_config(config).max_iters
    return Job(name, folder / name, (*command, f'randomness.seed={seed}'), iterations)


def trained(job: Job) -> dict:
    """Return the last checkpoint of a training."""
    return load_checkpoint(Path((job.work_dir / 'last_checkpoint').read_text().strip()))


def write_backbone(checkpoint: dict, target: Path) -> None:
    """Write the backbone of a detector in the format that mmengine's init_cfg reads."""
    weights = checkpoint['state_dict']
    backbone = {k: v for k, v in weights.items() if k.startswith('backbone.')}
    write_student(dict(state_dict=backbone), target)


def make_detectors(folder: Path, seed: int) -> None:
    """Train both detectors, keep their backbones, and train the two-stage teacher."""
    teacher, student = (
        job_of(f'det_{n}', folder, seed) for n in ('teacher', 'student')
    )
    run_jobs([teacher, student], 'train')
    write_student(trained(teacher), DIGITS / 'det_teacher.safetensors')
    write_backbone(trained(teacher), DIGITS / 'backbone_32.pth')
    write_backbone(trained(student), DIGITS / 'backbone_16.pth')
    two_stage = job_of('frcnn_teacher', folder, seed)
    run_jobs([two_stage], 'train')
    write_student(trained(two_stage), DIGITS / 'frcnn_teacher.safetensors')


def make_segmentor(folder: Path, seed: int) -> None:
    """Train the teacher of the segmentation."""
    job = job_of('seg_teacher', folder, seed)
    run_jobs([job], 'train')
    write_student(trained(job), DIGITS / 'seg_teacher.safetensors')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tasks', nargs='+', choices=PRESETS, default=list(PRESETS))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    # The configs name their data from the root of the repo.
    os.chdir(ROOT)
    # A training refuses a folder with results.
    folder = Path('work_dirs/teachers', time.strftime('%Y%m%d_%H%M%S'))
    for task in PRESETS:
        if task in args.tasks:
            make_digit_scenes(f'data/digits_{task}', PRESETS[task])
            make = make_detectors if task == 'det' else make_segmentor
            make(folder, args.seed)
            console.print(f'{DIGITS}: the weights of {task} are written')


if __name__ == '__main__':
    main()
