"""Measure the cost of the losses, of whole steps, and of the checks for NaN and Inf.

    python tools/benchmark.py step CONFIG [--size H W] [--batch N] [--json OUT]
    python tools/benchmark.py page --write docs/performance.md [--only recipes]
    python tools/benchmark.py losses [--only FGDLoss MGDLoss] [--write docs/losses.md]
    python tools/benchmark.py steps [--only det_pkd] [--write docs/costs.md]
    python tools/benchmark.py guard [configs/fgd/fgd_fpn_gfl_r101_gfl_r50_1x_coco.py]
    python tools/benchmark.py cache [configs/digits/det_pkd.py]
    python tools/benchmark.py teacher [configs/digits/det_distilled.py]

`losses` runs each loss on the CPU through the Distiller's own code, on random inputs of
the kinds that its `examples` attribute names: time and memory of one forward and
backward pass. Its time is compared with a plain mean squared error of the same maps;
the two run in turn. Memory is the peak of torch's allocator during the pass beyond what
it held before, from the allocations and releases in the profiler. It contains the
gradient of the student's maps, which every loss computes. Workspaces of the libraries
below torch are not visible.

`steps` trains the recipes of DigitScenes and their students alone, in turn, and
compares the times of a step. With `--costs configs/costs.json`, `losses` and `steps`
update the file that the catalogue of methods reads.

`step` measures a step of any recipe on made-up images of one object each, with random
weights; it downloads nothing. Its parts run in turn in one process: the student alone,
its update included; the whole forward pass of the teacher; the part of it that the
wires need; and the distillation step, with the checks for NaN of a training. Reading
and preprocessing the data is not part of it. The overhead is the distillation step
divided by the sum of the student and the needed part of the teacher, a median over
neighbouring runs. The peak memory of a part is that of its weights, the state of its
optimizer and what the step allocates. `page` runs `step` for the recipes of a page,
each in its own process, and writes figures and tables.

`teacher` runs the needed part of a teacher with each of its options, in turn: the time,
also in units of the plain teacher, and how the option changes the sum of the
distillation losses. Recipes of DigitScenes have their weights, others random ones.

`guard` trains a recipe on random images of 256 x 256 pixels on the CPU, with a teacher
of random weights. It runs steps in turn that check nothing, the values of the forward
pass, the gradients, or both. The ratio to a step without checks is a median over
neighbouring steps and noisy on a busy machine. The share is the time within the checks
divided by the rest of the same steps.

`cache` trains a recipe without its teacher, with a cache that has all records, and with
the teacher itself, in turn, and compares the time of the processor. A recipe of
DigitScenes gets scenes, another one random images and a teacher of random weights. It
also prints how far the flipped map of the teacher is from its map of the flipped image.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_bare import BARE
from benchmark_cache import measure_cache
from benchmark_guard import measure_guard
from benchmark_inputs import Scene, Wires, make_scene, sizes_of, wire_names
from benchmark_page import add_page
from benchmark_report import Result, note, page, show, write
from benchmark_step import add_step
from benchmark_steps import measure_steps, recipes
from benchmark_teacher import add_teacher
from benchmark_timing import Step, peak_bytes, ratio_of, seconds_of
from rich.console import Console

from kdtoolbox.distillers.wiring import Wiring
from kdtoolbox.losses.examples import Example, Sizes, examples_of, loss_classes


@dataclass
class Row:
    """One loss with its wires, as in a config.

    Attributes:
        wire: The wire that ``student`` and ``teacher`` name, without its side.
        arguments: The other keys of the entry under ``losses``.
        connector: A connector of the student's wire, without its ``input``.
        bare: Returns a step that does only what the method cannot do without.
    """

    wire: str
    arguments: dict[str, Any]
    connector: dict[str, Any] | None = None
    bare: Callable[[Wiring, Wires], Step] | None = None


def table(sizes: Sizes) -> dict[str, Row]:
    """Return the row of each registered loss, from its first example."""
    return {
        name: row_of(name, examples_of(kind)[0], sizes)
        for name, kind in loss_classes().items()
    }


def row_of(name: str, example: Example, sizes: Sizes) -> Row:
    """Return the row of an example of a loss."""
    wires = wire_names(example)
    for side in ('student', 'teacher'):
        del wires[side]
    return Row(
        wire=example.kinds['student'].wire,
        arguments=example.arguments(sizes) | wires,
        connector=example.connector(sizes) if example.connector else None,
        bare=BARE.get(name),
    )


def wiring_of(name: str, row: Row) -> Wiring:
    """Return the wiring of a loss without models; it watches nothing."""
    source = f'student.{row.wire}'
    connectors = {}
    if row.connector:
        connectors['connected'] = dict(row.connector, input=source)
        source = 'connected'
    entry = dict(row.arguments, type=name, student=source)
    entry['teacher'] = f'teacher.{row.wire}'
    return Wiring(dict(loss=entry), connectors)


def distillation(losses: Wiring, scene: Scene) -> Step:
    def step() -> None:
        terms = losses(scene.wires, scene.context)
        torch.stack(list(terms.values())).sum().backward()

    return step


def plain_error(scene: Scene, wire: str) -> Step:
    def step() -> None:
        pairs = zip(
            scene.wires[f'student.{wire}'], scene.wires[f'teacher.{wire}'], strict=True
        )
        torch.stack([((s - t) ** 2).mean() for s, t in pairs]).sum().backward()

    return step


def measure(name: str, row: Row | None, scene: Scene, repeats: int) -> Result:
    """Measure a loss, or the plain mean squared error without a row."""
    wire = row.wire if row else 'fpn'
    plain = plain_error(scene, wire)
    if row is None:
        steps, clear = {'step': plain}, scene.clear
    else:
        losses = wiring_of(name, row)
        steps = {'step': distillation(losses, scene)}
        if wire == 'fpn':
            steps['plain'] = plain
        if row.bare:
            steps['bare'] = row.bare(losses, scene.wires)

        def clear() -> None:
            scene.clear()
            losses.zero_grad()

    times = seconds_of(steps, clear, repeats)
    peak = peak_bytes(steps['step'], clear)
    size = sum(x.numel() * x.element_size() for x in scene.wires[f'student.{wire}'])
    return Result(
        name,
        wire,
        1000 * median(times['step']),
        ratio_of(times, 'plain'),
        ratio_of(times, 'bare'),
        peak / 1e6,
        peak / size,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    guard = commands.add_parser('guard', help='time of checking for NaN and Inf')
    guard.set_defaults(run=measure_guard)
    guard.add_argument('config', nargs='?', default='configs/digits/det_distilled.py')
    cache = commands.add_parser('cache', help='time of a step with a cached teacher')
    cache.set_defaults(run=measure_cache)
    cache.add_argument('config', nargs='?', default='configs/digits/det_pkd.py')
    cache.add_argument('--size', nargs=2, type=int, default=[320, 480])
    cache.add_argument('--images', type=int, default=2)
    losses = commands.add_parser('losses', help='time and memory of the losses')
    losses.set_defaults(run=measure_losses)
    option = losses.add_argument
    option('--size', nargs=2, type=int, default=[800, 1333], metavar=('H', 'W'))
    option('--strides', nargs='+', type=int, default=[8, 16, 32, 64, 128])
    option('--channels', type=int, default=256)
    option('--images', type=int, default=2)
    option('--boxes', type=int, default=20, help='of each image')
    steps = commands.add_parser('steps', help='time of a step with and without teacher')
    steps.set_defaults(run=measure_steps)
    for written, names in ((losses, loss_classes()), (steps, recipes())):
        option = written.add_argument
        option('--only', nargs='+', metavar='NAME', help='measure these alone')
        option('--write', type=Path, metavar='PAGE', help='Markdown page to write')
        option('--costs', type=Path, metavar='JSON', help='file of ratios to update')
        written.set_defaults(names=names)
    for command in (guard, cache, losses, steps):
        command.add_argument('--threads', type=int, default=2)
        command.add_argument('--repeats', type=int, default=9)
    add_step(commands)
    add_page(commands)
    add_teacher(commands)
    args = parser.parse_args()
    if args.run not in (measure_losses, measure_steps):
        return args
    unknown = set(args.only or []) - set(args.names)
    if unknown:
        there = sorted(args.names)
        parser.error(f'--only {" ".join(sorted(unknown))}: there are {there}')
    return args


def measure_losses(args: argparse.Namespace, console: Console) -> None:
    # Otherwise the profiler reports each of its starts.
    os.environ.setdefault('KINETO_LOG_LEVEL', '9')
    sizes = sizes_of(args.size, args.strides, args.channels, args.images)
    scene = make_scene(sizes, args.size, args.strides, args.boxes)
    rows: dict[str, Row | None] = {'plain MSE': None}
    rows |= {
        name: row
        for name, row in table(sizes).items()
        if not args.only or name in args.only
    }
    results = []
    for name, row in rows.items():
        console.print(f'measure {name} ...')
        results.append(measure(name, row, scene, args.repeats))
    show(results, console)
    if args.write:
        write(page(results, args), args.write)
        console.print(f'{args.write} written')
    if args.costs:
        ratios = {x.name: x.to_plain for x in results if x.to_plain is not None}
        note('losses', ratios, args.costs, args.threads)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.run(args, Console())


if __name__ == '__main__':
    main()
