"""Measure a whole training step of any recipe; part of tools/benchmark.py."""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from benchmark_parts import WRAPPERS, Batch, Part, parts_of, random_distiller
from benchmark_report import processor, write
from benchmark_timing import Step, others_load, peak_bytes, quartiles_of, seconds_of
from mmengine.logging import MMLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.configuration import load_config
from kdtoolbox.distillers.finite import check_finite
from kdtoolbox.distillers.gradients import finite_gradients
from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.runs.brief_errors import brief_errors

CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)
CHECKS = {
    'kdtoolbox.distillers.finite.check_finite': check_finite,
    'kdtoolbox.hooks.finite_weights.finite_gradients': finite_gradients,
}
"""The checks for NaN and Inf of a training step, by where it looks them up."""

GUARDED = 3
"""The steps in which the checks are measured."""

KEYS = dict(
    student='student_step',
    teacher_full='teacher_full',
    teacher_minimal='teacher_minimal',
    distill='distill_step',
)
"""The key of the seconds of each part."""


def add_step(commands: Any) -> None:
    """Add the command ``step``."""
    parser = commands.add_parser('step', help='time and memory of a step of a recipe')
    parser.set_defaults(run=measure_step)
    option = parser.add_argument
    option('config')
    option('--size', nargs=2, type=int, metavar=('H', 'W'), help='of the images')
    option('--batch', type=int, default=2, help='images of a step; 2')
    option('--iters', type=int, default=9, help='measured steps; 9')
    option('--device', choices=('cpu', 'cuda'), default='cpu')
    option('--amp', choices=[name for name in WRAPPERS if name])
    option('--threads', type=int, default=2)
    option(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='cpu: the processor time of this process, for a busy machine without GPU',
    )
    option('--json', type=Path, metavar='OUT', help='file for all figures')


def measure_step(args: argparse.Namespace, console: Console) -> None:
    # Otherwise it lists every group of the optimizers, as warnings for some models.
    MMLogger.get_current_instance().setLevel('ERROR')
    os.environ.setdefault('KINETO_LOG_LEVEL', '9')
    with brief_errors():
        check(args)
        model = random_distiller(args.config).to(args.device)
        batch = made_up_batch(model.student, args.size, args.batch)
        parts = parts_of(model, batch, load_config(args.config), args.amp)
    figures = describe(args, batch) | measure(parts, args)
    show(figures, console)
    if args.json:
        write(json.dumps(figures, indent=1) + '\n', args.json)
        console.print(f'{args.json} written')


def check(args: argparse.Namespace) -> None:
    """Raise ValueError if options do not fit one another or this machine."""
    if args.iters < 2:
        raise ValueError(f'--iters {args.iters}: expected at least 2, for quartiles')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch finds no GPU; set --device cpu')
    if args.device == 'cpu' and args.amp == 'float16':
        raise ValueError('--amp float16 needs --device cuda; set --amp bfloat16')


def describe(args: argparse.Namespace, batch: Batch) -> dict[str, Any]:
    """Return what was measured where."""
    gpu = args.device == 'cuda'
    return dict(
        config=args.config,
        size=list(batch[0].shape[-2:]),
        batch=args.batch,
        iters=args.iters,
        amp=args.amp,
        device=torch.cuda.get_device_name() if gpu else processor(),
        threads=args.threads,
        clock=args.clock,
        torch=torch.__version__,
    )


def measure(parts: dict[str, Part], args: argparse.Namespace) -> dict[str, Any]:
    """Return times, memory and their ratios."""
    finish = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    clock = CLOCKS[args.clock]
    steps = {name: in_full(part.step, finish) for name, part in parts.items()}
    with others_load() as load:
        times = seconds_of(steps, finish, args.iters, clock)
    peaks = {
        f'peak_{name}': peak_bytes(steps[name], finish, args.device) + part.held()
        for name, part in parts.items()
    }
    return dict(
        **{KEYS[name]: median(seconds) for name, seconds in times.items()},
        **overheads(times),
        **peaks,
        memory_overhead=peaks['peak_distill'] / peaks['peak_student'],
        guard_share=guard_share(steps['distill'], finish, clock),
        other_processes=load[0] if load else None,
    )


def in_full(step: Step, finish: Step) -> Step:
    """Return a step that ends when the device has done all its work."""

    def whole() -> None:
        step()
        finish()

    return whole


def overheads(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return ratios of a distillation step, over neighbouring runs."""
    student, minimal, distill = (
        times[name] for name in ('student', 'teacher_minimal', 'distill')
    )
    found = [d / (s + m) for s, m, d in zip(student, minimal, distill, strict=True)]
    to_student = [d / s for s, d in zip(student, distill, strict=True)]
    return dict(
        overhead=median(found),
        overhead_quartiles=quartiles_of(found),
        vs_student=median(to_student),
    )


def guard_share(step: Step, finish: Step, clock: Callable[[], float]) -> float:
    """Return the time of the checks for NaN divided by the rest of the same steps."""
    spent = 0.0

    def timed(check: Callable) -> Callable:
        def call(*args: Any) -> Any:
            nonlocal spent
            finish()
            start = clock()
            result = check(*args)
            spent += clock() - start
            return result

        return call

    with ExitStack() as stack:
        for place, check in CHECKS.items():
            stack.enter_context(mock.patch(place, timed(check)))
        start = clock()
        for _ in range(GUARDED):
            step()
        total = clock() - start
    return spent / (total - spent)


def show(figures: dict[str, Any], console: Console) -> None:
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(('part', 'ms', 'peak MB')):
        shown.add_column(header, justify='right' if index else 'left')
    for name, key in KEYS.items():
        peak = figures[f'peak_{name}'] / 1e6
        shown.add_row(name, f'{1000 * figures[key]:.1f}', f'{peak:.1f}')
    console.print(shown)
    low, high = figures['overhead_quartiles']
    console.print(
        f'distill / (student + teacher_minimal): {figures["overhead"]:.3f}, quartiles '
        f'{low:.3f} - {high:.3f}\ndistill / student: {figures["vs_student"]:.2f} of '
        f'the time, {figures["memory_overhead"]:.2f} of the memory\nchecks for NaN: '
        f'{figures["guard_share"]:.2%} of the rest of the step'
    )
