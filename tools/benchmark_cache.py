"""Compare a step with a cached teacher to the student's own; part of benchmark.py."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_guard import distiller_of
from benchmark_steps import DIGITS, batch_of, load
from benchmark_timing import Step, seconds_of
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kdtoolbox.distillers import Distiller
from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.teachers import Teacher

Batch = tuple[Tensor, Sequence]


def prepared(args: argparse.Namespace, folder: Path) -> tuple[Distiller, Batch]:
    """Return the model and a batch: scenes for a recipe of DigitScenes."""
    config = Path(args.config)
    if config.parent.resolve() != DIGITS:
        model = distiller_of(args.config)
        return model, made_up_batch(model.student, tuple(args.size), args.images)
    cfg = load(config.stem)
    batch = batch_of(cfg, folder / 'scenes')
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope)).train()
    data = model.data_preprocessor(batch, True)
    return model, (data['inputs'], data['data_samples'])


def steps_of(model: Distiller, batch: Batch, folder: Path) -> dict[str, Step]:
    """Return steps without a teacher, with a cache that has all records, and online."""
    model.teacher.use(cache=dict(path=str(folder / 'cache'), views=1))
    cache = model.teacher.cache
    # A tiny learning rate, so that nothing diverges.
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9))

    def step(run: Step) -> None:
        wrapper.update_params(model.parse_losses(run())[0])

    def distil(with_cache: bool) -> Mapping[str, Any]:
        model.teacher.cache = cache if with_cache else None
        return model.loss(*batch)

    runs = dict(
        student=partial(model.student, *batch, mode='loss'),
        cached=partial(distil, True),
        online=partial(distil, False),
    )
    return {name: partial(step, run) for name, run in runs.items()}


def flip_errors(teacher: Teacher, recorders: Mapping, batch: Batch) -> dict[str, float]:
    """Return how far each flipped map is from the map of the flipped image."""
    images, samples = batch
    maps = teacher.observe(recorders, images, samples)
    mirrored = teacher.observe(recorders, images.flip(3), samples)
    return {
        f'{name}, level {index}': ((own.flip(3) - other).norm() / other.norm()).item()
        for name in maps
        for index, (own, other) in enumerate(
            zip(maps[name], mirrored[name], strict=True)
        )
    }


def measure_cache(args: argparse.Namespace, console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, batch = prepared(args, Path(folder))
        steps = steps_of(model, batch, Path(folder))
        # Other programs disturb the time of the processor less.
        times = seconds_of(steps, lambda: None, args.repeats, time.process_time)
        cost = Table(box=SIMPLE_HEAD, padding=0)
        for index, header in enumerate(('step', 'ms', '× student')):
            cost.add_column(header, justify='right' if index else 'left')
        for name, seconds in times.items():
            pairs = zip(seconds, times['student'], strict=True)
            ratio = median(a / b for a, b in pairs)
            cost.add_row(name, f'{1000 * median(seconds):.0f}', f'{ratio:.2f}')
        console.print(f'{tuple(batch[0].shape)} images', cost)
        model.teacher.cache = None
        recorders = model.recorders[model.teacher.name]
        for name, error in flip_errors(model.teacher, recorders, batch).items():
            console.print(f'flipped map of {name}: relative error {error:.2f}')
