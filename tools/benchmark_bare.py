"""Steps that do only what a method cannot do without; part of tools/benchmark.py."""

from collections.abc import Sequence
from functools import reduce

import torch
from benchmark_inputs import Wires
from benchmark_timing import Step
from torch import Tensor, nn

from kdtoolbox.distillers.wiring import Wiring


def mgd(losses: Wiring, wires: Wires) -> Step:
    """Return a step of the convolutions of MGD's generators."""
    generators = losses.connectors['connected'].generators
    chains = map(convolutions_of, generators)
    return chained(list(zip(chains, wires['student.fpn'], strict=True)))


def ft(losses: Wiring, wires: Wires) -> Step:
    """Return a step of the convolutions of FT's paraphraser."""
    layers = convolutions_of(losses.losses['loss'].paraphraser)
    return chained([(layers, level) for level in wires['teacher.fpn']])


def diffkd(losses: Wiring, wires: Wires) -> Step:
    """Return a step of the convolutions of DiffKD's networks."""
    loss = losses.losses['loss']
    gate, denoiser, projection = map(
        convolutions_of, (loss.adapter, loss.denoiser, loss.projection)
    )
    refinement = loss.steps * denoiser + projection
    students, teachers = wires['student.fpn'], wires['teacher.fpn']
    return chained(
        [(layers, level) for layers in (gate, refinement) for level in students]
        + [(denoiser, level) for level in teachers]
    )


def convolutions_of(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def chained(runs: Sequence[tuple[list[nn.Module], Tensor]]) -> Step:
    """Return a step that passes each map through its layers, and gradients back."""

    def step() -> None:
        outputs = [
            reduce(lambda maps, layer: layer(maps), layers, maps)
            for layers, maps in runs
        ]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    return step


BARE = {'DiffKDLoss': diffkd, 'FTLoss': ft, 'MGDLoss': mgd}
"""The convolutions that a method trains, without norms, ReLUs, masks and losses."""
