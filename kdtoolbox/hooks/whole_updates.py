"""Check that no checkpoint is saved while gradients accumulate."""

from math import gcd

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class WholeUpdatesHook(Hook):
    """Raise if a checkpoint falls between two updates of the weights.

    With ``accumulative_counts`` an update uses the gradients of several iterations. A
    checkpoint does not contain gradients, so a run that resumes between two updates
    loses a part of its data. ``tools/train.py`` adds this hook to every run.

    Raises:
        ValueError: If checkpoints will be saved between two updates, or if the run
            resumes from such a checkpoint.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the intervals of the checkpoints and the first iteration."""
        counts = runner.cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
        if runner.iter % counts and runner.iter < runner.max_iters:
            raise ValueError(
                f'resumed after {runner.iter} iterations, between two updates of '
                f'optim_wrapper.accumulative_counts={counts}, so the gradients since '
                'the last update are lost; resume from a checkpoint whose iteration is '
                f'a multiple of {counts}'
            )
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.interval > 0:
                unit = len(runner.train_dataloader) if hook.by_epoch else 1
                step = counts // gcd(counts, unit)
                if hook.interval % step or hook.save_begin % step:
                    raise ValueError(
                        f'default_hooks.checkpoint: interval={hook.interval} with '
                        f'save_begin={hook.save_begin} saves between two updates of '
                        f'optim_wrapper.accumulative_counts={counts}, and a run that '
                        'resumes there loses gradients; set them to multiples of '
                        f'{step}'
                    )
