"""The parts of a training step of any recipe; part of tools/benchmark.py."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from benchmark_guard import distiller_of
from benchmark_timing import Step
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from kdtoolbox.distillers import Distiller
from kdtoolbox.hooks import FiniteWeightsHook
from kdtoolbox.inspection.quiet import make_finite
from kdtoolbox.runs.optimizer_groups import group_as_student

Batch = tuple[Tensor, list]
KEPT = ('optimizer', 'clip_grad', 'paramwise_cfg', 'constructor')
"""What a recipe sets of its optimizer wrapper, apart from precision."""

WRAPPERS: dict[str | None, dict[str, Any]] = {
    None: dict(type='OptimWrapper'),
    # Without a dynamic scale no update is skipped.
    'float16': dict(type='AmpOptimWrapper', dtype='float16', loss_scale=1.0),
    'bfloat16': dict(type='kdtoolbox.AutocastOptimWrapper'),
}
"""The optimizer wrapper of each ``--amp``."""


@dataclass
class Part:
    """A part of a step, or the whole.

    Attributes:
        step: Runs it.
        holders: The models whose weights it needs.
        optimizer: The optimizer whose states it needs.
    """

    step: Step
    holders: list[nn.Module]
    optimizer: torch.optim.Optimizer | None = None

    def held(self) -> int:
        """Return the bytes of weights, buffers and optimizer states."""
        tensors: Iterable[Any] = chain.from_iterable(
            chain(model.parameters(), model.buffers()) for model in self.holders
        )
        if self.optimizer is not None:
            states = self.optimizer.state.values()
            tensors = chain(tensors, *(state.values() for state in states))
        sizes = {id(x): x.nbytes for x in tensors if isinstance(x, Tensor)}
        return sum(sizes.values())


def parts_of(model: Distiller, batch: Batch, recipe: Config, amp: str | None) -> dict:
    """Return the parts of a step: `Part` by name.

    Args:
        model: The distiller in training mode.
        batch: Images and samples.
        recipe: The config of a run, for its optimizer.
        amp: One of `WRAPPERS`.
    """
    own, whole = (wrapper_of(recipe, x, amp) for x in (model.student, model))
    add_guard(model, whole)
    teacher, runs = teacher_runs(model, batch)
    context = partial(whole.optim_context, model)
    students = [model.student]
    models = [model, teacher]
    return dict(
        student=Part(training(model.student, own, batch), students, own.optimizer),
        teacher_full=Part(within(context, runs['full']), [teacher]),
        teacher_minimal=Part(within(context, runs['minimal']), [teacher]),
        distill=Part(training(model, whole, batch), models, whole.optimizer),
    )


def random_distiller(config: str) -> Distiller:
    """Return the distiller of a recipe in training mode, with random weights."""
    model = distiller_of(config)
    make_finite(model.student)
    return model


def teacher_runs(model: Distiller, batch: Batch) -> tuple[nn.Module, dict[str, Step]]:
    """Return the teacher's model and its runs: the whole, and what the wires need.

    No other function of this benchmark knows the interface of the teacher.
    """
    teacher, recorders = model.teacher, model.recorders['teacher']
    full = partial(teacher.model, *batch, mode='tensor')
    minimal = partial(teacher.observe, recorders, *batch)
    return teacher.model, dict(full=torch.no_grad()(full), minimal=minimal)


def within(context: Callable[[], AbstractContextManager], run: Step) -> Step:
    def step() -> None:
        with context():
            run()

    return step


def training(model: BaseModel, wrapper: OptimWrapper, batch: Batch) -> Step:
    """Return `train_step` of a model, for images that are preprocessed."""

    def step() -> None:
        with wrapper.optim_context(model):
            losses = model(*batch, mode='loss')
        wrapper.update_params(model.parse_losses(losses)[0])

    return step


def wrapper_of(recipe: Config, model: nn.Module, amp: str | None) -> OptimWrapper:
    """Return the optimizer wrapper of a recipe, as `tools/train.py` builds it."""
    settings = {k: v for k, v in recipe.optim_wrapper.items() if k in KEPT}
    cfg = Config(dict(optim_wrapper=settings | WRAPPERS[amp]))
    # A tiny learning rate, so that nothing diverges.
    cfg.optim_wrapper.optimizer.lr = 1e-9
    group_as_student(cfg)
    return build_optim_wrapper(model, cfg.optim_wrapper)


def add_guard(model: Distiller, wrapper: OptimWrapper) -> None:
    """Check the gradients of each update, as each run of `tools/train.py` does."""
    runner: Any = SimpleNamespace(model=model, optim_wrapper=wrapper)
    FiniteWeightsHook().before_train(runner)
