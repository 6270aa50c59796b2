"""The losses of the benchmark on a batch that can be dealt out to processes."""

import copy
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from kdtoolbox.losses.examples import Sizes, examples_of, loss_classes

ROOT = Path(__file__).resolve().parents[2]
# The tools import their parts from their own folder.
sys.path.append(str(ROOT / 'tools'))

import benchmark  # noqa: E402
import benchmark_inputs as inputs  # noqa: E402

CHANNELS = 8
BOXES = (3, 1, 4, 2)
# The critic of SKD halves its maps four times.
IMAGE, STRIDES = (128, 128), (4, 8)
SIZES = Sizes(
    images=len(BOXES),
    levels=((32, 32), (16, 16)),
    channels=CHANNELS,
    teacher_channels=CHANNELS,
    classes=5,
    anchors=1,
    bins=5,
    rows=6 * len(BOXES),
    queries=5,
    teacher_queries=5,
)


def load(path: str) -> Any:
    """Import a file of the repository that belongs to no package."""
    name = path.removesuffix('.py').replace('/', '_')
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / path)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def names() -> list[str]:
    return list(benchmark.table(SIZES))


def row_of(name: str) -> Any:
    """Return the row of a loss, on maps if it can: on those, 255 is no class."""
    examples = examples_of(loss_classes()[name])
    maps = [x for x in examples if x.student == 'class logits map']
    return benchmark.row_of(name, [*maps, *examples][0], SIZES)


def make_batch(ignored: int = 16) -> Any:
    """Return random wires of four images in float64, with other boxes on each.

    Args:
        ignored: For each image but the first, how many more rows of pixels than on the
            one before have no label.
    """
    scene = inputs.make_scene(SIZES, IMAGE, STRIDES, boxes=1)
    for levels in scene.wires.values():
        levels[:] = [x.double() if x.is_floating_point() else x for x in levels]
    samples = [inputs.make_sample(boxes, IMAGE, SIZES.classes) for boxes in BOXES]
    for index, sample in enumerate(samples):
        sample.gt_sem_seg.data[:, : ignored * index] = 255
    scene.context['data_samples'] = samples
    return deal(scene, 0, 1)


def deal(batch: Any, rank: int, ranks: int) -> Any:
    """Return the share of one process of several.

    Its targets have the divisor of mmdet's heads: the mean over the processes.
    """
    wires = {
        # All images share the weights of a classifier.
        name: levels
        if name == 'student.classifier'
        else [level.chunk(ranks)[rank] for level in levels]
        for name, levels in batch.wires.items()
    }
    whole = batch.context['data_samples']
    mine = whole[rank * len(whole) // ranks : (rank + 1) * len(whole) // ranks]
    total = targets_of(whole).avg_factor
    targets = targets_of(mine)
    targets = replace(targets, avg_factor=total / ranks)
    return inputs.Scene(wires, dict(batch.context, data_samples=mine, targets=targets))


def targets_of(samples: list) -> Any:
    return inputs.make_targets(samples, SIZES.levels, STRIDES, SIZES.classes)


class Student(nn.Module):
    """A loss behind a student with one parameter for each value of an image."""

    def __init__(self, name: str, batch: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        row = row_of(name)
        self.wiring = benchmark.wiring_of(name, row).train()
        self.wiring.double()
        self.offsets = nn.ModuleDict(
            {
                wire.replace('.', '/'): nn.ParameterList(
                    torch.zeros(level.shape[1:], dtype=level.dtype) for level in levels
                )
                for wire, levels in batch.wires.items()
                if wire.startswith('student.')
            }
        )
        trial = copy.deepcopy(self)
        trial(batch).backward()
        for mine, tried in zip(
            self.offsets.parameters(), trial.offsets.parameters(), strict=True
        ):
            # DDP waits for parameters that a loss does not read, or only detached.
            mine.requires_grad_(tried.grad is not None)

    def forward(self, batch: Any) -> Tensor:
        wires = dict(batch.wires)
        for key, offsets in self.offsets.items():
            wire = key.replace('/', '.')
            wires[wire] = [
                x + offset for x, offset in zip(wires[wire], offsets, strict=True)
            ]
        with same_draws_for_each_image():
            terms = self.wiring(wires, batch.context)
        return torch.stack(list(terms.values())).sum()

    def gradients(self) -> dict[str, Tensor]:
        return {
            name: parameter.grad.clone()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


@contextmanager
def same_draws_for_each_image() -> Iterator[None]:
    """Let what is drawn at random not depend on the process that an image is in."""
    seeds = itertools.count()

    def draw(original: Any, *args: Any, **kwargs: Any) -> Tensor:
        values = original(*args, **kwargs)
        generator = torch.Generator().manual_seed(next(seeds))
        first = uniform(values.shape[1:], generator=generator, dtype=torch.float64)
        first = first if values.is_floating_point() else first * args[0]
        return first.to(values.dtype).expand_as(values).clone()

    uniform = torch.rand
    names = ('rand', 'randn', 'randint', 'rand_like')
    patches = {name: partial(draw, getattr(torch, name)) for name in names}
    with torch.random.fork_rng(devices=[]), mock.patch.multiple(torch, **patches):
        # For draws that belong to no image.
        torch.manual_seed(0)
        yield
