"""Train for a long time and tell whether memory, threads, files or hooks grow.

Runs tools/train.py on a config with many validations and checkpoints, ends it after
`--minutes`, and fits lines through what ResourceHook has logged.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LEVEL = ('threads', 'files', 'hooks')
# Caches and allocators fill in the beginning.
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


def train(args: argparse.Namespace) -> None:
    """Train in a process group of its own and end it when the time is over."""
    args.work_dir.mkdir(parents=True)
    config = args.work_dir / 'soak.py'
    base = str(Path(args.config).resolve())
    config.write_text(CONFIG.format(base=base, interval=args.interval))
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config)]
    command += ['--work-dir', str(args.work_dir / 'run')]
    with (args.work_dir / 'output.log').open('w') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(args.minutes * 60)
            raise RuntimeError(f'the training ended by itself; see {log.name}')
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def read(work_dir: Path) -> list[dict]:
    """Return the lines that the training has logged."""
    [path] = work_dir.glob('run/*/vis_data/scalars.json')
    lines = path.read_text().rpartition('\n')[0].splitlines()
    return [line for line in map(json.loads, lines) if 'rss_mb' in line]


def measure(lines: list[dict], minutes: float) -> dict:
    """Return the iterations done, the slope of the memory and the levels kept."""
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
        # Batches on their way from a worker hold files; what leaks ends above all that.
        most = max(line[name] for line in warm[:third])
        report[name] = [round(most), round(min(line[name] for line in warm[-third:]))]
    return report


def main() -> None:
    args = parse_args()
    if args.work_dir.exists():
        raise SystemExit(f'{args.work_dir} exists; name another --work-dir')
    train(args)
    report = measure(read(args.work_dir), args.minutes)
    (args.work_dir / 'soak.json').write_text(json.dumps(report, indent=2) + '\n')
    table = Table('what', 'after the warm-up and at the end')
    for name, value in report.items():
        table.add_row(name, ' -> '.join(map(str, np.atleast_1d(value))))
    Console().print(table)
    grown = [name for name in LEVEL if report[name][1] > report[name][0]]
    if grown:
        raise SystemExit(f'{", ".join(grown)} grew')


if __name__ == '__main__':
    main()
