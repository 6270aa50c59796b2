"""Train a copy of a model on a single batch, to see whether its losses fall."""

from collections import defaultdict
from copy import deepcopy
from typing import Any

import torch

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.gradient_shares import summed_losses
from kdtoolbox.distillers.observing import Step
from kdtoolbox.inspection.quiet import first_iteration

LEARNING_RATE = 1e-3
"""Adam's usual rate. The schedule of the config starts too slowly for a few steps."""

CLIP = 35.0
"""Largest norm of the gradient, the usual one for detectors."""


def overfit(distiller: Distiller, batch: Any, steps: int) -> dict[str, list[float]]:
    """Train a copy of a distiller on one batch and return each loss in each step.

    Adam trains it at a fixed rate, so that the result tells about losses and wires and
    not about the schedule of the config.

    Args:
        distiller: The distiller, which is not changed.
        batch: A batch of a data loader.
        steps: Number of steps.

    Raises:
        NonFiniteError: If a loss is not finite.
    """
    copy = deepcopy(distiller).train()
    values: dict[str, list[float]] = defaultdict(list)

    def note(step: Step) -> None:
        for name, loss in summed_losses(step).items():
            values[name].append(float(loss.detach()))

    copy.observers.append(note)
    weights = [p for p in copy.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, LEARNING_RATE)
    with torch.random.fork_rng(), first_iteration():
        for _ in range(steps):
            # Equal dropout and sampling in each step leave only the training.
            torch.manual_seed(0)
            data = copy.data_preprocessor(deepcopy(batch), training=True)
            total, _ = copy.parse_losses(copy(**data, mode='loss'))
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
    return dict(values)
