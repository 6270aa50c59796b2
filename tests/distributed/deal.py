"""The losses of the benchmark on a batch that can be dealt out to processes."""

import copy
import itertools
import sys
from argparse import Namespace
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

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 8
BOXES = (3, 1, 4, 2)
# The critic of SKD halves its maps four times.
ARGUMENTS = Namespace(
    size=[128, 128], strides=[4, 8], channels=CHANNELS, images=len(BOXES), boxes=1
)

PIXELS = (
    'CTKDLoss',
    'DISTLoss',
    'DKDLoss',
    'GuidedKDLoss',
    'KDLoss',
    'LSKDLoss',
    'NKDLoss',
    'NormKDLoss',
    'SphericalKDLoss',
    'TTMLoss',
    'WSLDLoss',
)
"""Losses on logits that are tried on maps, where 255 is no class."""


def load(path: str) -> Any:
    """Import a file of the repository that belongs to no package."""
    name = path.removesuffix('.py').replace('/', '_')
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / path)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def small_benchmark() -> Any:
    module = load('tools/benchmark.py')
    module.CLASSES, module.BINS, module.ROIS, module.MASKS = 5, 5, 6, 5
    return module


def names() -> list[str]:
    return list(small_benchmark().table(CHANNELS, 2))


def row_of(name: str) -> Any:
    row = small_benchmark().table(CHANNELS, 2)[name]
    if name in PIXELS:
        arguments = {k: v for k, v in row.arguments.items() if k != 'labels'}
        row = replace(row, wire='cls', arguments=arguments)
    return row


def make_batch(ignored: int = 16) -> Any:
    """Return random wires of four images in float64, with other boxes on each.

    Args:
        ignored: For each image but the first, how many more rows of pixels than on the
            one before have no label.
    """
    benchmark = small_benchmark()
    scene = benchmark.make_scene(ARGUMENTS)
    for levels in scene.wires.values():
        levels[:] = [x.double() if x.is_floating_point() else x for x in levels]
    samples = [benchmark._sample(boxes, ARGUMENTS.size) for boxes in BOXES]
    for index, sample in enumerate(samples):
        sample.gt_sem_seg.data[:, : ignored * index] = 255
    scene.context['data_samples'] = samples
    return deal(scene, 0, 1)


def deal(batch: Any, rank: int, ranks: int) -> Any:
    """Return the share of one process of several.

    Its targets have the divisor of mmdet's heads: the mean over the processes.
    """
    benchmark = small_benchmark()
    wires = {
        # All images share the weights of a classifier.
        name: levels
        if name == 'student.classifier'
        else [level.chunk(ranks)[rank] for level in levels]
        for name, levels in batch.wires.items()
    }
    sizes = [list(level.shape[-2:]) for level in batch.wires['student.fpn']]
    whole = batch.context['data_samples']
    mine = whole[rank * len(whole) // ranks : (rank + 1) * len(whole) // ranks]
    total = benchmark._targets(whole, sizes, ARGUMENTS.strides).avg_factor
    targets = benchmark._targets(mine, sizes, ARGUMENTS.strides)
    targets = replace(targets, avg_factor=total / ranks)
    return benchmark.Scene(
        wires, dict(batch.context, data_samples=mine, targets=targets)
    )


class Student(nn.Module):
    """A loss behind a student with one parameter for each value of an image."""

    def __init__(self, name: str, batch: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        row = row_of(name)
        self.distiller = small_benchmark().Losses(name, row).train()
        for part in self.distiller.children():
            part.double()
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
            terms = self.distiller.distill(wires, batch.context)
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
