"""Keep checkpoints out of the middle of accumulated gradients."""

from math import gcd

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class WholeUpdatesHook(Hook):
    """Refuse checkpoints between two updates of the weights.

    With ``accumulative_counts`` the gradients of several iterations make one update. A
    checkpoint does not hold them, so that a run resumed from within loses a part of
    its data; ``tools/train.py`` adds this hook to every run.

    Raises:
        ValueError: If checkpoints are going to fall between two updates, or the run was
            resumed from such a one.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the intervals of the checkpoints and at the first iteration."""
        counts = runner.cfg.get('optim_wrapper', {}).get('accumulative_counts', 1)
        if runner.iter % counts and runner.iter < runner.max_iters:
            raise ValueError(
                f'resumed after {runner.iter} iterations, between two updates of '
                f'optim_wrapper.accumulative_counts={counts}, and the gradients since '
                'the last are lost; resume from a checkpoint whose iteration is a '
                f'multiple of {counts}'
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
                        'is resumed from there loses gradients; set them to multiples '
                        f'of {step}'
                    )
