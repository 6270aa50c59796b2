"""Log the resources of the process that would grow with a leak."""

import os
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS

_PROCESS = Path('/proc/self')
_TABLES = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks')


@HOOKS.register_module()
class ResourceHook(Hook):
    """Log ``rss_mb``, ``threads``, ``files`` and ``hooks`` beside the losses.

    These are the resident memory (MiB), the threads and the open file handles of this
    process, as Linux counts them, and the module hooks of the model and its teacher.
    They should not grow in a long run; ``tools/soak.py`` measures that.
    """

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Log the counts of this iteration."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, value in count_resources(model).items():
            runner.message_hub.update_scalar(f'train/{name}', value)


def count_resources(model: Any) -> dict[str, float]:
    """Return the resources of this process, and the number of a model's hooks."""
    pages = int((_PROCESS / 'statm').read_text().split()[1])
    models = [model]
    models += [teacher.model for teacher in getattr(model, 'teachers', {}).values()]
    return dict(
        rss_mb=pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
        threads=len(os.listdir(_PROCESS / 'task')),
        files=len(os.listdir(_PROCESS / 'fd')),
        hooks=sum(
            len(getattr(module, table))
            for part in models
            for module in part.modules()
            for table in _TABLES
        ),
    )
