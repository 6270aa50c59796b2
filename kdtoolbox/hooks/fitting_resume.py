"""Check that a checkpoint fits the run that resumes from it."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kdtoolbox.checkpoints.resume_misfits import Misfits, find_misfits
from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class FittingResumeHook(Hook):
    """Raise if a run resumes from a checkpoint of another model, optimizer or schedule.

    mmengine loads only the weights with a matching key, and pairs optimizer states and
    schedulers by position. After a change of the recipe, a part of the model would
    start at random and with the momentum of another part. ``tools/train.py`` adds this
    hook to every run, with ``partly=True`` for ``--resume-partly``.

    Args:
        partly: Resume the weights that fit. If a parameter, an optimizer or a
            scheduler does not fit, all optimizers and schedulers start afresh.

    Raises:
        ValueError: If something does not fit, and ``partly`` is False.
    """

    # EMAHook, which swaps weights and averages, has to run after.
    priority = 'HIGHEST'

    def __init__(self, partly: bool = False) -> None:
        self.partly = partly

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the run."""
        if not runner._resume:
            return
        misfits = find_misfits(runner, checkpoint)
        if not (misfits.weights or misfits.optimizer):
            return
        differences = (
            f"'{runner._load_from or 'the last checkpoint'}' does not fit this run:\n"
            f'{misfits.table()}\n'
        )
        if not self.partly:
            raise ValueError(
                f'{differences}Resume with the recipe of the checkpoint, or name '
                'another --work-dir; to resume the parts that fit and start the rest '
                'afresh, add --resume-partly'
            )
        runner.logger.warning(f'{differences}{_remove_misfits(checkpoint, misfits)}')


def _remove_misfits(checkpoint: dict, misfits: Misfits) -> str:
    """Remove the parts that do not fit from a checkpoint; describe the effect."""
    for difference in misfits.weights:
        # torch raises at weights of another shape even with `strict=False`.
        for name, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
            checkpoint.get(name, {}).pop(f'{prefix}{difference.name}', None)
    if not misfits.optimizer:
        return 'Weights without a match keep their initial values'
    for name in ('optimizer', 'param_schedulers'):
        checkpoint.pop(name, None)
    return (
        'Weights without a match keep their initial values; ALL OPTIMIZERS AND '
        'SCHEDULERS START AFRESH'
    )
