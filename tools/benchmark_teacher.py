"""Measure what the options of a teacher save and change; part of benchmark.py."""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_cache import Batch, prepared
from benchmark_timing import seconds_of
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.distillers import Distiller

OPTIONS: dict[str, dict[str, Any]] = {
    'plain': {},
    'bfloat16': dict(dtype='bfloat16'),
    'channels_last': dict(channels_last=True),
    'compile': dict(compile=True),
    'all three': dict(dtype='bfloat16', channels_last=True, compile=True),
}


def add_teacher(commands: Any) -> None:
    """Add the command ``teacher``."""
    parser = commands.add_parser('teacher', help='gain and effect of its options')
    parser.set_defaults(run=measure_teacher)
    option = parser.add_argument
    option('config', nargs='?', default='configs/digits/det_distilled.py')
    option('--size', nargs=2, type=int, default=[320, 480], metavar=('H', 'W'))
    option('--images', type=int, default=2)
    option('--only', nargs='+', choices=OPTIONS, default=[*OPTIONS])
    option('--device', choices=('cpu', 'cuda'), default='cpu')
    option('--threads', type=int, default=2)
    option('--repeats', type=int, default=9)


def measure_teacher(args: argparse.Namespace, console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            name: with_options(args, Path(folder) / str(number), OPTIONS[name])
            for number, name in enumerate(dict.fromkeys(['plain', *args.only]))
        }
    finish = torch.cuda.synchronize if args.device == 'cuda' else lambda: None

    def observe(model: Distiller, batch: Batch) -> None:
        model.teacher.observe(model.recorders['teacher'], *batch)
        finish()

    steps = {name: partial(observe, *case) for name, case in cases.items()}
    # On a busy processor the time of this process tells more than that of the wall.
    clock = time.perf_counter if args.device == 'cuda' else time.process_time
    times = seconds_of(steps, finish, args.repeats, clock)
    losses = {name: distilled(*case) for name, case in cases.items()}
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(('option', 'ms', '× plain', 'loss', 'weights MB')):
        shown.add_column(header, justify='right' if index else 'left')
    for name, (model, _) in cases.items():
        pairs = zip(times[name], times['plain'], strict=True)
        change = losses[name] / losses['plain'] - 1
        held = sum(x.nbytes for x in model.teacher.model.parameters())
        ratio = median(a / b for a, b in pairs)
        cells = [f'{1000 * median(times[name]):.1f}', f'{ratio:.2f}']
        shown.add_row(name, *cells, f'{change:+.3%}', f'{held / 1e6:.1f}')
    console.print(shown)


def with_options(
    args: argparse.Namespace, folder: Path, options: dict[str, Any]
) -> tuple[Distiller, Batch]:
    """Return the same model and batch with other options of the teacher."""
    model, (images, samples) = prepared(args, folder)
    model.teacher.use(**options)
    model = model.to(args.device)
    return model, (images.to(args.device), [x.to(args.device) for x in samples])


@torch.no_grad()
def distilled(model: Distiller, batch: Batch) -> float:
    """Return the sum of the distillation losses of a batch."""
    torch.manual_seed(0)
    losses = model.loss(*batch)
    names = (*model.losses,)
    return sum(
        float(value) for key, value in losses.items() if key.partition('.')[0] in names
    )
