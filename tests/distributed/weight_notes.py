"""A hook that notes weight, share and loss of each iteration, one file per process."""

import json
import os
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class NoteWeightHook(Hook):
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        self.notes: list[dict[str, float]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict
    ) -> None:
        wrapped = is_model_wrapper(runner.model)
        model = runner.model.module if wrapped else runner.model
        scalars = runner.message_hub.log_scalars
        self.notes.append(
            dict(
                weight=scalars['train/weight/loss_cwd'].current(),
                next_weight=model.losses['loss_cwd'].loss_weight,
                share=scalars['train/share/loss_cwd'].current()
                if 'train/share/loss_cwd' in scalars
                else None,
                loss=float(outputs['loss_cwd'].detach()),
            )
        )

    def after_train(self, runner: Runner) -> None:
        path = Path(os.environ['NOTES']) / f'{get_rank()}.json'
        path.write_text(json.dumps(self.notes))
