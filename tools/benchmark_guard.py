"""Measure the cost of looking for NaN and Inf; part of tools/benchmark.py."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from benchmark_timing import seconds_of
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import check_finite
from kdtoolbox.distillers.gradients import finite_gradients
from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.runs.distillation import build_distiller
from kdtoolbox.teachers.kinds import forget_weights

GUARDS = dict(none=(), values=('values',), gradients=('gradients',))
GUARDS['both'] = ('values', 'gradients')
"""The values that a step checks."""


def distiller_of(config: str) -> Distiller:
    """Return the distiller of a recipe, with random weights.

    Raises:
        ValueError: If the config is not that of a distillation.
    """
    cfg = load_config(config)
    resolve_paths(cfg)
    forget_weights(cfg.model)
    cfg.model._scope_ = cfg.get('default_scope')
    torch.manual_seed(0)
    return revert_sync_batchnorm(build_distiller(cfg)).train()


class Watched:
    """A training whose steps check for NaN and Inf.

    Attributes:
        spent: For each of `GUARDS`, the seconds that each step spent in its checks.
    """

    def __init__(self, model: Distiller) -> None:
        self.model = model
        self.images, self.samples = made_up_batch(model.student)
        # A tiny learning rate, so that nothing diverges.
        optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)
        self.wrapper = OptimWrapper(optimizer)
        self.spent: dict[str, list[float]] = {name: [] for name in GUARDS}

    def step(self, name: str) -> None:
        """Train one step with one of `GUARDS`."""
        checks, spent = GUARDS[name], self.spent[name]
        spent.append(0.0)

        def timed(function: Callable, *args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            spent[-1] += time.perf_counter() - start
            return result

        check = partial(timed, check_finite) if 'values' in checks else lambda *_: None
        with mock.patch('kdtoolbox.distillers.finite.check_finite', check):
            losses = self.model.loss(self.images, self.samples)
        self.wrapper.backward(self.model.parse_losses(losses)[0])
        optimizer = self.wrapper.optimizer
        if 'gradients' in checks and not timed(finite_gradients, optimizer):
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
