"""Compare a teacher with its own architecture at random weights."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel, revert_sync_batchnorm

from kdtoolbox.diagnosis.measurements import TaskLosses
from kdtoolbox.inspection.quiet import first_iteration
from kdtoolbox.teacher import build_model


def random_twin(config: str | dict, device: torch.device) -> BaseModel:
    """Return the model of a teacher's config with random weights, in eval mode.

    Args:
        config: The teacher's config, as ``Teacher`` takes it.
        device: Where the model will run.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config, where='model.teacher.config')
        for module in model.modules():
            # Weights that were trained on other data are not random, and need a
            # download.
            if 'Pretrained' in str(getattr(module, 'init_cfg', None)):
                module.init_cfg = None
        model.init_weights()
        # SyncBN, which estimates no statistics on a CPU.
        revert_sync_batchnorm(model)
    return model.requires_grad_(False).to(device).eval()


def settle_statistics(model: BaseModel, batch: Any) -> None:
    """Set the statistics of batch norms to those of one batch.

    At their start, mean 0 and variance 1, the activations of a deep network explode.
    """
    for module in model.modules():
        if getattr(module, 'running_mean', None) is not None:
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        task_loss(model, batch)
    model.eval()


def task_loss(model: BaseModel, batch: Any) -> float:
    """Return the sum of a model's task losses on a batch of a data loader."""
    with torch.no_grad(), torch.random.fork_rng(), first_iteration():
        torch.manual_seed(0)
        data = model.data_preprocessor(deepcopy(batch), training=True)
        losses: Any = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
    return float(total)


def compare_losses(
    teacher: BaseModel, twin: BaseModel, batches: Sequence[Any]
) -> TaskLosses:
    """Return the mean task losses of a teacher and of its random twin.

    The twin's batch norms get the statistics of the first batch.
    """
    try:
        settle_statistics(twin, batches[0])
        values = [
            [task_loss(model, batch) for batch in batches] for model in (teacher, twin)
        ]
    except Exception as error:
        # Whatever stops a foreign teacher here, such as other labels, is reported.
        return TaskLosses(fault=f'{type(error).__name__}: {error}')
    of_teacher, of_twin = (sum(each) / len(each) for each in values)
    return TaskLosses(of_teacher, of_twin)
