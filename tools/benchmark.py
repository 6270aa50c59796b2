"""Measure what the losses cost, and what watching their numbers costs.

    python tools/benchmark.py losses [--only FGDLoss MGDLoss] [--write docs/losses.md]
    python tools/benchmark.py guard [configs/fgd/fgd_fpn_gfl_r101_gfl_r50_1x_coco.py]

The first runs each loss on the CPU through the Distiller's own code, on random maps of
a feature pyramid: time and memory of one forward and backward pass. Its time is
compared with a plain mean squared error of the same maps, run in turn with it. Memory
is the most that torch's allocator holds at any moment of the pass beyond what it held
before, as its allocations and releases in the profiler say; it contains the gradient of
the student's maps, which every loss makes. Workspaces inside the libraries below torch
are not seen.

The second trains a recipe on made-up images of 256 x 256 pixels on the CPU, with a
teacher of random weights: in turn without a look at the numbers, with one at the values
of the forward, with one at the gradients, and with both. The ratio to the step without
is a median over neighbours, and on a busy machine it tells little; the share is the
time within the looks over that of the rest of the same steps.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import check_finite
from kdtoolbox.distillers.gradients import finite_gradients
from kdtoolbox.distillers.watching import Watch
from kdtoolbox.distillers.wiring import build_section, connector_wires, loss_wires
from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.registry import MODELS
from kdtoolbox.runs.rehearsal import made_up_batch

CLASSES = 80
BINS = 17
ROIS = 512
"""Sampled regions of each image."""

MASKS = 100
"""Mask queries of each image."""

Wires = dict[str, list[Tensor]]
Step = Callable[[], Any]


@dataclass
class Row:
    """One loss with its wires, as in a config.

    Attributes:
        wire: The wire of both sides that ``student`` and ``teacher`` name.
        arguments: What else the entry under ``losses`` says.
        connector: A connector of the student's wire, without its ``input``.
        bare: Makes the step that does only what the method cannot do without.
    """

    wire: str
    arguments: dict[str, Any] = field(default_factory=dict)
    connector: dict[str, Any] | None = None
    bare: Callable[['Losses', Wires], Step] | None = None


def on(wire: str, **arguments: Any) -> Row:
    return Row(wire, arguments)


def table(channels: int, levels: int) -> dict[str, Row]:
    """Return the row of each registered loss."""
    pyramid = dict(channels=channels, num_levels=levels)
    generator = dict(type='MGDConnector', mask_ratio=0.65, **pyramid)
    mine, theirs = dict(student_cls='student.cls'), dict(teacher_cls='teacher.cls')
    labels = dict(labels='roi_labels')
    both = dict.fromkeys(['student_channels', 'teacher_channels'], [channels] * levels)
    guides = dict(theirs, teacher_reg='teacher.box')
    regs = dict(student_reg='student.box', teacher_reg='teacher.box')
    masked = dict(student_cls='student.mask_cls', teacher_cls='teacher.mask_cls')
    memory = dict(num_classes=CLASSES, pixel_slots=500, region_slots=500)
    memory |= dict(student_channels=channels, teacher_channels=channels)
    memory['max_anchors'] = 1024
    surrogate = dict(features='student.fpn', classifier='student.classifier')
    surrogate |= dict(num_classes=CLASSES, student_channels=channels)
    surrogate['ramp_iterations'] = 1
    return {
        'ABLoss': on('fpn'),
        'ATLoss': on('fpn'),
        'AdaptationLoss': on('fpn'),
        'AffinityLoss': on('fpn'),
        'AngularLoss': on('fpn'),
        'AttnFDLoss': on('fpn'),
        'BPKDLoss': on('cls'),
        'CCLoss': on('fpn'),
        'CIRKDMemoryLoss': on('fpn', **memory),
        'CIRKDMiniBatchLoss': on('fpn', pool_size=4),
        'CTKDLoss': on('roi_cls', ramp_iterations=100),
        'CWDLoss': on('fpn'),
        'ChannelDistillationLoss': on('fpn'),
        'CrossKDBoxLoss': on('box', **theirs),
        'CrossKDCenternessLoss': on('centerness'),
        'CrossKDClsLoss': on('cls'),
        'CrossKDDistributionLoss': on('distribution', **theirs),
        'DISTLoss': on('roi_cls'),
        'DKDLoss': on('roi_cls', **labels),
        'DSDCategoryLoss': on('cls'),
        'DSDPixelLoss': on('layers'),
        'DeFeatLoss': on('fpn'),
        'DeFeatRoILoss': on('roi_cls', **labels),
        'DiffKDLoss': on('fpn', channels=channels),
        'FAKDLoss': on('cls', **surrogate),
        'FBKDLoss': on('fpn', **pyramid),
        'FCFDRegressionLoss': on('roi_box'),
        'FGDLoss': on('fpn', **pyramid),
        'FGFILoss': on('fpn'),
        'FRSFeatureLoss': on('fpn', **theirs),
        'FRSLogitLoss': on('cls'),
        'FSPLoss': on('fpn', student_end='student.fpn', teacher_end='teacher.fpn'),
        'FTLoss': on('fpn', teacher_channels=channels, factor_channels=channels),
        'FitNetLoss': on('fpn'),
        'GIDLoss': on('fpn', **mine, **theirs, **regs),
        'GuidedKDLoss': on('roi_cls', **labels),
        'HCLLoss': on('fpn'),
        'ICKDLoss': on('fpn'),
        'IDDLoss': on('fpn'),
        'IFVDLoss': on('fpn'),
        'KDLoss': on('roi_cls'),
        'LDClsLoss': on('cls'),
        'LDLoss': on('distribution', **mine),
        'LSKDLoss': on('roi_cls'),
        'MGDLoss': Row('fpn', connector=generator, bare=convolutions),
        'MasKDLoss': on('fpn', num_tokens=6, allow_random=True, **pyramid),
        'MaskQueryLoss': on('masks', **masked),
        'NFDLoss': on('fpn'),
        'NKDLoss': on('roi_cls', **labels),
        'NORMLoss': on('fpn'),
        'NSTLoss': on('fpn'),
        'NormKDLoss': on('roi_cls'),
        'OFDLoss': on('fpn'),
        'ObjectnessLoss': on('objectness'),
        'PFILoss': on('fpn', **mine, **theirs),
        'PGDClsLoss': on('fpn', **guides, level_weights=[1.0] * levels),
        'PGDRegLoss': on('fpn', **guides),
        'PKDLoss': on('fpn'),
        'PKTLoss': on('fpn'),
        'QueryBoxLoss': on('query_box', teacher_cls='teacher.roi_cls'),
        'QueryClassLoss': on('roi_cls'),
        'RKDLoss': on('fpn'),
        'RMLoss': on('cls'),
        'RoIRegressionLoss': on('roi_box', **labels),
        'SDDLoss': on('cls'),
        'SKDHolisticLoss': on('cls', num_classes=CLASSES),
        'SKDPairwiseLoss': on('fpn'),
        'SPLoss': on('fpn'),
        'SRDLoss': on('fpn'),
        'SSIMLoss': on('fpn'),
        'SemCKDLoss': on('fpn', pool_size=4, **both),
        'SphericalKDLoss': on('roi_cls'),
        'TTMLoss': on('roi_cls'),
        'VIDLoss': on('fpn', **pyramid),
        'ViTKDLoss': on('fpn', channels=channels),
        'WSLDLoss': on('roi_cls', **labels),
    }


class Losses(Distiller):
    """The part of a distiller that is left without models: connectors and losses."""

    def __init__(self, name: str, row: Row) -> None:
        BaseModel.__init__(self)
        source = f'student.{row.wire}'
        connectors = {}
        if row.connector:
            connectors['connected'] = dict(row.connector, input=source)
            source = 'connected'
        entry = dict(row.arguments, type=name, student=source)
        entry['teacher'] = f'teacher.{row.wire}'
        self.connectors, self._connections = build_section(
            connectors, 'connectors', connector_wires
        )
        self.losses, self._comparisons = build_section(
            dict(loss=entry), 'losses', loss_wires
        )
        # What is watched in a run would be measured, too.
        self._watch = Watch({})


@dataclass
class Scene:
    """Random inputs of the losses: wires and the context of a batch."""

    wires: Wires
    context: dict[str, Any]

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        for name, levels in self.wires.items():
            for level in levels:
                level.grad = None
                level.requires_grad_(name.startswith('student.'))


def make_scene(args: argparse.Namespace) -> Scene:
    torch.manual_seed(0)
    sizes = [[-(-side // stride) for side in args.size] for stride in args.strides]
    shapes = _shapes(args, sizes)
    wires = {
        f'{side}.{name}': [torch.randn(shape) for shape in levels]
        for side in ('student', 'teacher')
        for name, levels in shapes.items()
    }
    weights = torch.randn(CLASSES, args.channels, 1, 1)
    wires['student.classifier'] = [weights] * len(sizes)
    wires['roi_labels'] = [torch.randint(CLASSES + 1, (args.images * ROIS,))]
    samples = [_sample(args.boxes, args.size) for _ in range(args.images)]
    context = dict(
        data_samples=samples,
        batch_input_shape=tuple(args.size),
        targets=_targets(samples, sizes, args.strides),
    )
    return Scene(wires, context)


def _shapes(args: argparse.Namespace, sizes: list[list[int]]) -> dict[str, list]:
    """Return the shapes of each wire, one per level, or one of rows."""
    widths = dict(fpn=args.channels, cls=CLASSES, box=4, distribution=4 * BINS)
    widths |= dict(centerness=1, objectness=3)
    rows = dict(roi_cls=CLASSES + 1, roi_box=4 * CLASSES, query_box=4)
    maps = {
        name: [(args.images, width, *size) for size in sizes]
        for name, width in widths.items()
    }
    # Two layers of a backbone whose stride does not grow, as segmentors have it.
    maps['layers'] = [(args.images, args.channels, *sizes[0])] * 2
    # One layer of a Mask2Former's decoder.
    maps['mask_cls'] = [(args.images, MASKS, CLASSES + 1)]
    maps['masks'] = [(args.images, MASKS, *sizes[0])]
    return maps | {name: [(args.images * ROIS, k)] for name, k in rows.items()}


def _sample(boxes: int, size: list[int]) -> Any:
    """An image with a label per pixel and boxes of 16 pixels to half its size."""
    extent = torch.tensor([size[1], size[0]])
    first = torch.rand(boxes, 2) * extent / 2
    last = first + 16 + torch.rand(boxes, 2) * (extent / 2 - 16).clamp(min=0)
    instances = SimpleNamespace(
        bboxes=torch.cat([first, last], 1), labels=torch.randint(CLASSES, (boxes,))
    )
    labels = SimpleNamespace(data=torch.randint(CLASSES, (1, *size)))
    return SimpleNamespace(
        gt_instances=instances,
        gt_sem_seg=labels,
        metainfo=dict(img_shape=tuple(size)),
    )


def _targets(samples: list, sizes: list[list[int]], strides: list[int]) -> DenseTargets:
    """One square anchor per cell, positive where the cell is near a box's centre."""
    boxes, classes, exist = pad_boxes(samples, torch.device('cpu'))
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    labels, priors, indices = [], [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        cells = torch.cartesian_prod(rows, columns).flip(1) * stride
        near = (cells[:, None] - centers[:, None]).abs().amax(-1) < 1.5 * stride
        hit, index = (near & exist[:, None]).max(-1)
        labels.append(classes.gather(1, index).where(hit, CLASSES))
        indices.append(index.where(hit, -1))
        anchors = torch.cat([cells - 4 * stride, cells + 4 * stride], 1)
        priors.append(anchors.expand(len(samples), -1, -1))
    positives = sum((label < CLASSES).sum() for label in labels)
    return DenseTargets(
        labels=labels,
        label_weights=[torch.ones(label.shape) for label in labels],
        priors=priors,
        strides=strides,
        num_classes=CLASSES,
        avg_factor=torch.as_tensor(positives).clamp(min=1).float(),
        decode=lambda level, raw: priors[level] + strides[level] * raw,
        gt_inds=indices,
    )


def distillation(losses: Losses, scene: Scene) -> Step:
    def step() -> None:
        terms = losses.distill(scene.wires, scene.context)
        torch.stack(list(terms.values())).sum().backward()

    return step


def plain_error(scene: Scene, wire: str) -> Step:
    def step() -> None:
        pairs = zip(
            scene.wires[f'student.{wire}'], scene.wires[f'teacher.{wire}'], strict=True
        )
        torch.stack([((s - t) ** 2).mean() for s, t in pairs]).sum().backward()

    return step


def convolutions(losses: Losses, wires: Wires) -> Step:
    """The two convolutions of each of MGD's generators, without ReLU, mask and loss."""
    generators = losses.connectors['connected'].generators

    def step() -> None:
        generated = [
            last(first(level))
            for (first, _, last), level in zip(
                generators, wires['student.fpn'], strict=True
            )
        ]
        torch.autograd.backward(generated, wires['teacher.fpn'])

    return step


def seconds_of(steps: Mapping[str, Step], clear: Step, repeats: int) -> dict:
    """Time the steps in turn, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 2):
        for name, step in steps.items():
            clear()
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def peak_bytes(step: Step) -> int:
    """Return the most that torch's CPU allocator holds during a step, beyond before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [
        e for e in trace.profiler.kineto_results.events() if e.name() == '[memory]'
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass
class Result:
    """What one loss costs; ratios are None where nothing is there to compare with."""

    name: str
    wire: str
    milliseconds: float
    to_plain: float | None
    to_bare: float | None
    megabytes: float
    maps: float

    def cells(self) -> list[str]:
        """Return what stands under `HEADERS`."""
        ratios = [
            '' if r is None else f'{r:.2f}' for r in (self.to_plain, self.to_bare)
        ]
        times = [f'{self.milliseconds:.1f}', *ratios]
        return [
            self.name,
            self.wire,
            *times,
            f'{self.megabytes:.1f}',
            f'{self.maps:.1f}',
        ]


HEADERS = ('loss', 'wire', 'ms', '× MSE', '× bare', 'peak MB', 'maps')
PAGE = """\
# What the losses cost

Time and memory of one forward and backward pass of each loss over all levels, by

```shell
{command}
```

- Inputs: {maps}.
- Machine: {machine}.
- Time: the median over the passes. The ratios are medians over passes run in turn: to a
  plain `((s - t) ** 2).mean()` of the same maps, and for MGD to the bare convolutions
  of its generators. A loss on other wires than `fpn` has none.
- Memory: the most that torch's CPU allocator holds beyond what it held before, from
  the profiler's record of allocations. The column *maps* has it in units of the
  student's maps on that wire. It contains their gradient, which every loss makes.
  Workspaces inside the libraries below torch are not seen.

{header}
{rule}
{rows}
"""


def measure(name: str, row: Row | None, scene: Scene, repeats: int) -> Result:
    """Measure a loss, or the plain error if there is no row."""
    wire = row.wire if row else 'fpn'
    plain = plain_error(scene, wire)
    if row is None:
        steps, clear = {'step': plain}, scene.clear
    else:
        losses = Losses(name, row)
        steps = {'step': distillation(losses, scene)}
        if wire == 'fpn':
            steps['plain'] = plain
        if row.bare:
            steps['bare'] = row.bare(losses, scene.wires)

        def clear() -> None:
            scene.clear()
            losses.zero_grad()

    times = seconds_of(steps, clear, repeats)
    peak = 0
    # Every loss allocates, but the profiler now and then loses all events of a run.
    for _ in range(5):
        clear()
        peak = peak or peak_bytes(steps['step'])
    size = sum(x.numel() * x.element_size() for x in scene.wires[f'student.{wire}'])
    return Result(
        name,
        wire,
        1000 * median(times['step']),
        _ratio(times, 'plain'),
        _ratio(times, 'bare'),
        peak / 1e6,
        peak / size,
    )


def _ratio(times: dict[str, list[float]], other: str) -> float | None:
    """The median of the ratios of neighbours, which share the machine's mood."""
    if other not in times:
        return None
    return median(a / b for a, b in zip(times['step'], times[other], strict=True))


def show(results: Iterable[Result], console: Console) -> None:
    # Narrow: eighty columns have to do, and no number may be cut.
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(HEADERS):
        shown.add_column(header, justify='right' if index > 1 else 'left', no_wrap=True)
    for result in results:
        shown.add_row(*result.cells())
    console.print(shown)


def page(results: Iterable[Result], args: argparse.Namespace) -> str:
    """Return the results as a page of Markdown."""
    maps = (
        f'{args.images} images of {args.size[0]} x {args.size[1]} pixels with '
        f'{args.boxes} boxes each, strides {", ".join(map(str, args.strides))}, '
        f'{args.channels} channels on `fpn`, float32'
    )
    machine = (
        f'{time.strftime("%Y-%m-%d", time.gmtime())}, torch {torch.__version__}, '
        f'{_processor()}, {args.threads} threads'
    )
    return PAGE.format(
        command=shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]]),
        maps=maps,
        machine=machine,
        header=_line(HEADERS),
        rule=_line(['---', '---', *['---:'] * len(HEADERS[2:])]),
        rows='\n'.join(_line(result.cells()) for result in results),
    )


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


GUARDS = dict(none=(), values=('values',), gradients=('gradients',))
GUARDS['both'] = ('values', 'gradients')
"""What is looked at in a step."""


def distiller_of(config: str) -> Distiller:
    """Return the distiller of a recipe, with random weights."""
    cfg = load_config(config)
    resolve_paths(cfg)
    cfg.model.teacher.update(checkpoint=None, allow_random=True)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, _scope_=cfg.get('default_scope')))
    return revert_sync_batchnorm(model).train()


class Watched:
    """A training whose steps look for NaN and Inf.

    Attributes:
        spent: For each of `GUARDS` the seconds within the looks of each step.
    """

    def __init__(self, model: Distiller) -> None:
        self.model = model
        self.images, self.samples = made_up_batch(model.student)
        # Slow, so that nothing diverges.
        optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)
        self.wrapper = OptimWrapper(optimizer)
        self.spent: dict[str, list[float]] = {name: [] for name in GUARDS}

    def step(self, name: str) -> None:
        """Train once under one of `GUARDS`."""
        looks, spent = GUARDS[name], self.spent[name]
        spent.append(0.0)

        def timed(look: Callable, *args: Any) -> Any:
            start = time.perf_counter()
            result = look(*args)
            spent[-1] += time.perf_counter() - start
            return result

        check = partial(timed, check_finite) if 'values' in looks else lambda *_: None
        with mock.patch('kdtoolbox.distillers.finite.check_finite', check):
            losses = self.model.loss(self.images, self.samples)
        self.wrapper.backward(self.model.parse_losses(losses)[0])
        optimizer = self.wrapper.optimizer
        if 'gradients' in looks and not timed(finite_gradients, optimizer):
            raise ValueError('the gradients of made-up images are not finite')
        self.wrapper.step()
        self.wrapper.zero_grad()


def measure_guard(args: argparse.Namespace, console: Console) -> None:
    watched = Watched(distiller_of(args.config))
    steps = {name: partial(watched.step, name) for name in GUARDS}
    times = seconds_of(steps, lambda: None, args.repeats)
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(('looked at', 'ms', '× none', 'ms of it', 'share')):
        shown.add_column(header, justify='right' if index else 'left')
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, times['none'], strict=True))
        spent = watched.spent[name][-args.repeats :]
        share = sum(spent) / (sum(seconds) - sum(spent))
        numbers = [f'{1000 * median(seconds):.1f}', f'{ratio:.3f}']
        numbers += [f'{1000 * median(spent):.2f}', f'{share:.2%}']
        shown.add_row(name, *numbers)
    console.print(shown)


def write(text: str, target: Path) -> None:
    """Write a file so that it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        partial.write_text(text)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    guard = commands.add_parser('guard', help='time of looking for NaN and Inf')
    guard.set_defaults(run=measure_guard)
    guard.add_argument('config', nargs='?', default='configs/digits/det_distilled.py')
    losses = commands.add_parser('losses', help='time and memory of the losses')
    losses.set_defaults(run=measure_losses)
    option = losses.add_argument
    option('--only', nargs='+', metavar='LOSS', help='measure these losses alone')
    option('--size', nargs=2, type=int, default=[800, 1333], metavar=('H', 'W'))
    option('--strides', nargs='+', type=int, default=[8, 16, 32, 64, 128])
    option('--channels', type=int, default=256)
    option('--images', type=int, default=2)
    option('--boxes', type=int, default=20, help='of each image')
    option('--write', type=Path, metavar='PAGE', help='Markdown page to write as well')
    for command in (guard, losses):
        command.add_argument('--threads', type=int, default=2)
        command.add_argument('--repeats', type=int, default=9)
    args = parser.parse_args()
    if args.run is measure_guard:
        return args
    names = table(args.channels, len(args.strides))
    unknown = set(args.only or []) - names.keys()
    if unknown:
        parser.error(f'--only {" ".join(sorted(unknown))}: there are {sorted(names)}')
    return args


def measure_losses(args: argparse.Namespace, console: Console) -> None:
    # The profiler reports each of its starts otherwise.
    os.environ.setdefault('KINETO_LOG_LEVEL', '9')
    scene = make_scene(args)
    rows: dict[str, Row | None] = {'plain MSE': None}
    rows |= {
        name: row
        for name, row in table(args.channels, len(args.strides)).items()
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


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.run(args, Console())


if __name__ == '__main__':
    main()
