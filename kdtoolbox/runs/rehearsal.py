"""Try the losses of a distillation on random images before any data are read."""

from copy import deepcopy

import torch
from mmengine.logging import print_log

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import NonFiniteError
from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.inspection.quiet import first_iteration, make_finite
from kdtoolbox.teachers.record_cache import uncached


def rehearse(model: Distiller, side: int | None = None) -> None:
    """Compute all losses once on a copy of the model, to find misfits at the start.

    This checks records, connectors and losses against the shapes, levels and classes
    of both models. It changes no weight, buffer or random state of the training. If
    the student itself fails on such images, the recipe may still be right. Then one
    line of the log says that the losses were not tried.

    Args:
        model: The distiller, without a DDP wrapper.
        side: Height and width of the images in pixels; None for a usual size.

    Raises:
        ValueError: If a record, a connector or a loss does not work. The message begins
            with its config path.
    """
    with torch.random.fork_rng(), first_iteration(), uncached():
        torch.manual_seed(0)
        try:
            copy = deepcopy(model).train()
            make_finite(copy)
            images, samples = made_up_batch(copy.student, side)
            copy.loss(images, samples)
        except Exception as error:
            # Our own errors begin with a config path. An overflow proves
            # nothing, because the training has other weights and images.
            is_ours = str(error).startswith('model.')
            if is_ours and not isinstance(error, NonFiniteError):
                raise
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            print_log(
                f'The losses were not tried before the first iteration: {reason}',
                logger='current',
            )
