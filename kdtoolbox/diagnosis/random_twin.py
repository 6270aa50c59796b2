"""Compare a teacher with its own architecture at random weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel, revert_sync_batchnorm

from kdtoolbox.diagnosis.measurements import TaskLosses
from kdtoolbox.inspection.quiet import first_iteration
from kdtoolbox.teachers.models import build_model


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


@contextmanager
def batch_statistics(model: BaseModel) -> Iterator[None]:
    """Let batch norms use the statistics of each batch, and keep their mean afterwards.

    With other statistics the activations of a deep network with random weights explode,
    and its loss is no level of chance.
    """
    for module in model.modules():
        if getattr(module, 'running_mean', None) is not None:
            module.reset_running_stats()
            module.train()
            # The mean over all batches.
            module.momentum = None
    try:
        yield
    finally:
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

    Afterwards the batch norms of the twin have the statistics of the batches.
    """
    try:
        of_teacher = [task_loss(teacher, batch) for batch in batches]
        with batch_statistics(twin):
            of_twin = [task_loss(twin, batch) for batch in batches]
    except Exception as error:
        # Whatever stops a foreign teacher here, such as other labels, is reported.
        return TaskLosses(fault=f'{type(error).__name__}: {error}')
    count = len(batches)
    return TaskLosses(sum(of_teacher) / count, sum(of_twin) / count)
