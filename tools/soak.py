"""Train for a long time and report whether memory, threads, files or hooks grow.

Runs tools/train.py on a config with many validations and checkpoints, ends it after
`--minutes`, and fits lines through what ResourceHook has logged.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from jobs import Job, console, logged
from rich.table import Table

from kdtoolbox.checkpoints.writing import write_whole

LEVEL = ('threads', 'files', 'hooks')
# The first quarter, in which caches and allocators fill, does not count.
WARM_UP = 0.25
CONFIG = """_base_ = {base!r}
train_cfg = dict(max_iters=10**7, val_interval={interval})
default_hooks = dict(checkpoint=dict(interval={interval}, max_keep_ckpts=2))
custom_hooks = [*_base_.get('custom_hooks', []), dict(type='kdtoolbox.ResourceHook')]
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a recipe with an iteration-based loop')
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'))
    parser.add_argument(
        '--interval', type=int, default=100, help='between validations and checkpoints'
    )
    return parser.parse_args()


def train(args: argparse.Namespace) -> Path:
    """Train until the time is over and return the work dir of the training."""
    args.work_dir.mkdir(parents=True)
    config = args.work_dir / 'soak.py'
    base = str(Path(args.config).resolve())
    with write_whole(config) as file:
        file.write(CONFIG.format(base=base, interval=args.interval).encode())
    command = ('tools/train.py', str(config.resolve()))
    job = Job('soak', args.work_dir / 'run', command)
    end = time.monotonic() + args.minutes * 60
    job.start()
    try:
        while time.monotonic() < end:
            if not job.running():
                raise RuntimeError(f'the training ended by itself; see {job.log}')
            time.sleep(1)
    finally:
        job.stop()
    return job.work_dir


def measure(lines: list[dict], minutes: float, interval: int = 0) -> dict:
    """Return the iterations done, the slope of the memory and the levels kept.

    Args:
        lines: The logged lines.
        minutes: The time that the training has taken.
        interval: Iterations before the first validation, which starts the threads of
            its loader. Lines up to there do not count.
    """
    lines = [line for line in lines if line['iter'] > interval]
    if len(lines) < 8:
        raise RuntimeError(f'{len(lines)} lines logged: too few; give it more minutes')
    warm = lines[int(WARM_UP * len(lines)) :]
    iterations = [line['iter'] for line in warm]
    memory = [line['rss_mb'] for line in warm]
    slope = float(np.polyfit(iterations, memory, 1)[0])
    per_hour = lines[-1]['iter'] / minutes * 60
    report = dict(
        minutes=minutes,
        iterations=lines[-1]['iter'],
        rss_mb=[round(memory[0]), round(memory[-1])],
        rss_mb_per_1000_iterations=round(1000 * slope, 2),
        rss_mb_per_hour=round(per_hour * slope, 1),
    )
    third = len(warm) // 3
    for name in LEVEL:
        # Batches that a worker sends hold files for a moment, so a count goes up and
        # down. With a leak even the lowest count at the end exceeds the highest before.
        most = max(line[name] for line in warm[:third])
        report[name] = [round(most), round(min(line[name] for line in warm[-third:]))]
    return report


def main() -> None:
    args = parse_args()
    if args.work_dir.exists():
        raise SystemExit(f'{args.work_dir} exists; name another --work-dir')
    lines = [line for line in logged(train(args)) if 'rss_mb' in line]
    report = measure(lines, args.minutes, args.interval)
    with write_whole(args.work_dir / 'soak.json') as file:
        file.write((json.dumps(report, indent=2) + '\n').encode())
    table = Table('what', 'after the warm-up and at the end')
    for name, value in report.items():
        table.add_row(name, ' -> '.join(map(str, np.atleast_1d(value))))
    console.print(table)
    grown = [name for name in LEVEL if report[name][1] > report[name][0]]
    if grown:
        raise SystemExit(f'{", ".join(grown)} grew')


if __name__ == '__main__':
    main()
