"""Measure the recipes of docs/performance.md; part of tools/benchmark.py."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_report import ROOT, machine, markdown, write
from rich.console import Console

GFL = 'configs/cwd/cwd_fpn_gfl_r101_gfl_r50_1x_coco.py'
SMALL = (128, 192)


@dataclass(frozen=True)
class Run:
    """One run of ``step``."""

    config: str
    size: tuple[int, int] = SMALL
    batch: int = 2

    def command(self) -> list[str]:
        """Return the command line without what all runs have in common."""
        size = map(str, self.size)
        return ['step', self.config, '--size', *size, '--batch', str(self.batch)]

    def matches(self, figures: dict[str, Any]) -> bool:
        """Return whether figures are those of this run."""
        found = (figures['config'], tuple(figures['size']), figures['batch'])
        return found == (self.config, self.size, self.batch)


RUNS = dict(
    recipes=[
        Run(GFL),
        Run('configs/fgd/fgd_fpn_retina_x101_retina_r50_2x_coco.py'),
        Run('configs/pkd/pkd_fpn_frcnn_r101_frcnn_r50_2x_coco.py'),
        Run(
            'configs/cwd/cwd_logits_pspnet_r101_pspnet_r18_80k_cityscapes-512x1024.py',
            (128, 256),
        ),
        Run(
            'configs/cwd/'
            'cwd_logits_segformer_b2_segformer_b0_160k_cityscapes-1024x1024.py',
            (192, 192),
        ),
        Run('configs/cwd/cwd_norm-fpn_rtmdet_m_rtmdet_s_300e_coco.py', (256, 256)),
    ],
    methods=[
        Run(GFL),
        Run('configs/pkd/pkd_fpn_gfl_r101_gfl_r50_1x_coco.py'),
        Run('configs/fgd/fgd_fpn_gfl_r101_gfl_r50_1x_coco.py'),
        Run('configs/ld/ld_head_gfl_r101_gfl_r50_1x_coco.py'),
        Run('configs/mgd/mgd_fpn_gfl_r101_gfl_r50_1x_coco.py'),
        Run('configs/crosskd/crosskd_head_gfl_r101_gfl_r50_1x_coco.py'),
    ],
    growth=[
        Run(GFL, batch=1),
        Run(GFL),
        Run(GFL, batch=4),
        Run(GFL, (96, 144)),
        Run(GFL, (160, 240)),
    ],
)
"""The runs of each table of the page."""

TARGETS = dict(cwd=1.03, pkd=1.03, fgd=1.03, ld=1.03, mgd=1.05, crosskd=1.05)
"""The largest overhead that the methods should have, by their folder."""

HEADERS = (
    'recipe',
    'size',
    'batch',
    'student',
    'teacher',
    'minimal',
    'distilled',
    'overhead',
    'quartiles',
    '× student',
    'MB',
    '× memory',
)


def add_page(commands: Any) -> None:
    """Add the command ``page``."""
    parser = commands.add_parser('page', help='`step` of many recipes, as a page')
    parser.set_defaults(run=measure_page)
    option = parser.add_argument
    option('--write', type=Path, required=True, metavar='PAGE', help='with markers')
    option('--only', nargs='+', choices=RUNS, help='measure these tables alone')
    option('--keep', action='store_true', help='keep the figures that are there')
    option('--iters', type=int, default=7)
    option('--threads', type=int, default=1)
    option('--clock', default='wall')
    option('--device', default='cpu')


def measure_page(args: argparse.Namespace, console: Console) -> None:
    target = args.write.with_suffix('.json')
    known = json.loads(target.read_text()) if target.exists() else []
    done = list(known) if args.keep else []
    names = args.only or RUNS
    for run in dict.fromkeys(run for name in names for run in RUNS[name]):
        if not any(map(run.matches, done)):
            console.print(f'measure {shlex.join(run.command())} ...')
            figures = figures_of(run, common(args))
            done.append(figures)
            known = [*(x for x in known if not run.matches(x)), figures]
            write(json.dumps(known, indent=1) + '\n', target)
    write(filled(args.write.read_text(), known, args), args.write)
    console.print(f'{args.write} written')


def common(args: argparse.Namespace) -> list[str]:
    """Return the options that all runs have in common."""
    names = ('iters', 'threads', 'clock', 'device')
    return [word for name in names for word in (f'--{name}', str(getattr(args, name)))]


def figures_of(run: Run, options: Iterable[str]) -> dict[str, Any]:
    """Run ``step`` in a process of its own, and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / 'figures.json'
        command = [sys.executable, 'tools/benchmark.py', *run.command(), *options]
        subprocess.run([*command, '--json', str(target)], cwd=ROOT, check=True)
        return json.loads(target.read_text())


def filled(page: str, known: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Return a page with new text between its markers ``<!-- NAME -->``."""
    texts = {
        name: table([x for run in runs for x in known if run.matches(x)])
        for name, runs in RUNS.items()
    }
    texts['machine'] = conditions(known, args)
    texts['targets'] = verdicts(
        x for run in RUNS['methods'] for x in known if run.matches(x)
    )
    for name, text in texts.items():
        block = rf'(<!-- {name}.*? -->\n).*?(<!-- end -->)'
        page = re.sub(block, rf'\g<1>\n{text}\n\n\g<2>', page, flags=re.DOTALL)
    return page


def table(rows: Iterable[dict[str, Any]]) -> str:
    return markdown(HEADERS, map(cells, rows), texts=3)


def cells(figures: dict[str, Any]) -> list[str]:
    """Return the cells of a row under `HEADERS`."""
    parts = ('student_step', 'teacher_full', 'teacher_minimal', 'distill_step')
    low, high = figures['overhead_quartiles']
    return [
        f'`{figures["config"].removeprefix("configs/")}`',
        '{} x {}'.format(*figures['size']),
        str(figures['batch']),
        *(f'{1000 * figures[part]:.0f}' for part in parts),
        f'{figures["overhead"]:.3f}',
        f'{low:.3f} - {high:.3f}',
        f'{figures["vs_student"]:.2f}',
        f'{figures["peak_distill"] / 1e6:.0f}',
        f'{figures["memory_overhead"]:.2f}',
    ]


def verdicts(rows: Iterable[dict[str, Any]]) -> str:
    """Return a table of the overheads, compared with their targets."""
    lines = []
    for row in rows:
        method = Path(row['config']).parent.name
        low, high = row['overhead_quartiles']
        target = TARGETS[method]
        verdict = 'missed' if low > target else 'met' if high <= target else 'open'
        cells = [f'`{method}`', f'{target:.2f}', f'{row["overhead"]:.3f}', verdict]
        lines.append(cells)
    return markdown(('method', 'target', 'overhead', 'verdict'), lines, texts=1)


def conditions(known: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Return the command of a row, and the machine with its load, as a list."""
    words = shlex.join(common(args))
    loads = [x['other_processes'] for x in known if x['other_processes'] is not None]
    text = f"""\
- Command of a row, with its recipe, size and batch: `python tools/benchmark.py step
  configs/RECIPE --size H W --batch N {words}`.
- Machine: {machine(args.threads)}, {os.cpu_count()} cores."""
    if loads:
        text += f"""
- Load: other processes kept {median(loads):.1f} of the cores busy in the median run,
  and {min(loads):.1f} to {max(loads):.1f} over all runs."""
    return text
