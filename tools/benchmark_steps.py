"""Measure a whole training step with and without a teacher; part of benchmark.py."""

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_report import command, machine, markdown, note, write
from benchmark_timing import Step, quartiles_of, ratios_of, seconds_of
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, init_default_scope
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.registry import MODELS

DIGITS = Path(__file__).resolve().parents[1] / 'configs' / 'digits'
ALONE = ('student', 'teacher')
HEADERS = ('recipe', 'student, ms', 'distilled, ms', 'ratio', 'quartiles')
PAGE = """\
# What a distilled step costs

The time of one training step of a distilled student, compared with a step of the same
student alone, by

```shell
{command}
```

- Data: one batch of {images} scenes of [DigitScenes](../configs/digits), in memory.
- A step is `train_step`: preprocessing, forward and backward pass, and the update of
  the weights. The distilled step contains the teacher's forward pass, the connectors
  and the losses, and the checks for NaN. Reading the data is not part of it.
- Machine: {machine}.
- Times are medians over {repeats} steps. Both trainings run in turn, one step each. The
  ratio is the median over pairs of neighbouring steps; half of the pairs lie between
  the quartiles.

{table}

These pairs are small: the teachers are twice as wide as the students, and images have
128 x 128 pixels. The ratio of another pair depends on how much slower its teacher is
than its student, so measure yours. [The costs of the losses](losses.md) do not depend
on the models.
"""


@dataclass
class Cost:
    """The time of a recipe's step; the quartiles are those of the ratio."""

    student_ms: float
    distilled_ms: float
    ratio: float
    quartiles: tuple[float, float]

    def cells(self) -> list[str]:
        """Return the cells of a row behind the recipe's name."""
        times = [f'{self.student_ms:.0f}', f'{self.distilled_ms:.0f}']
        low, high = self.quartiles
        return [*times, f'{self.ratio:.2f}', f'{low:.2f} - {high:.2f}']


def recipes() -> dict[str, str]:
    """Return the distilled recipes of DigitScenes: the student's name for each."""
    stems = [path.stem for path in sorted(DIGITS.glob('*_*.py'))]
    return {
        stem: f'{stem.partition("_")[0]}_student'
        for stem in stems
        if not stem.endswith(ALONE)
    }


def load(stem: str) -> Config:
    """Return the config of a recipe of DigitScenes, with absolute paths."""
    cfg = load_config(DIGITS / f'{stem}.py')
    resolve_paths(cfg)
    return cfg


def batch_of(cfg: Config, root: Path) -> Any:
    """Return one batch of new scenes, as the config's data loader would."""
    images = cfg.train_dataloader.batch_size
    task = Path(cfg.train_dataloader.dataset.data_root).name.removeprefix('digits_')
    make_digit_scenes(root, PRESETS[task], train=images, val=1, workers=1)
    init_default_scope(cfg.default_scope)
    settings = dict(cfg.train_dataloader.dataset, data_root=f'{root}/')
    if 'ann_file' in settings:
        settings['ann_file'] = str(root / settings['ann_file'])
    dataset = DATASETS.build(settings)
    return pseudo_collate([dataset[index] for index in range(images)])


def training_step(cfg: Config, batch: Any) -> Step:
    """Return a function that trains the model of a config by one step."""
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))
    model.init_weights()
    optimizer = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    return lambda: model.train_step(batch, optimizer)


def measure(stem: str, student: str, repeats: int) -> Cost:
    """Measure the steps of a recipe and of its student alone, in turn."""
    cfg, alone = load(stem), load(student)
    with tempfile.TemporaryDirectory() as folder:
        batch = batch_of(alone, Path(folder) / 'scenes')
    steps = {'plain': training_step(alone, batch), 'step': training_step(cfg, batch)}
    times = seconds_of(steps, lambda: None, repeats)
    ratios = ratios_of(times, 'plain')
    plain, step = (1000 * median(times[name]) for name in ('plain', 'step'))
    return Cost(plain, step, median(ratios), quartiles_of(ratios))


def show(costs: dict[str, Cost], console: Console) -> None:
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(HEADERS):
        shown.add_column(header, justify='right' if index else 'left')
    for stem, cost in costs.items():
        shown.add_row(stem, *cost.cells())
    console.print(shown)


def page(costs: dict[str, Cost], args: argparse.Namespace) -> str:
    """Return the costs as a page of Markdown."""
    rows: Iterable[list[str]] = (
        [f'`configs/digits/{stem}.py`', *cost.cells()] for stem, cost in costs.items()
    )
    return PAGE.format(
        command=command(),
        images=load('det_student').train_dataloader.batch_size,
        machine=machine(args.threads),
        repeats=args.repeats,
        table=markdown(HEADERS, rows, texts=1),
    )


def measure_steps(args: argparse.Namespace, console: Console) -> None:
    # Otherwise it lists how each weight is initialised.
    MMLogger.get_current_instance().setLevel('WARNING')
    costs = {}
    for stem, student in recipes().items():
        if not args.only or stem in args.only:
            console.print(f'measure {stem} ...')
            costs[stem] = measure(stem, student, args.repeats)
    show(costs, console)
    if args.write:
        write(page(costs, args), args.write)
        console.print(f'{args.write} written')
    if args.costs:
        values = {stem: asdict(cost) for stem, cost in costs.items()}
        note('steps', values, args.costs, args.threads)
        console.print(f'{args.costs} written')
