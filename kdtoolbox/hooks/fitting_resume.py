"""Resume what fits the run that was built, and nothing else."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from kdtoolbox.checkpoints.resume_misfits import Misfits, find_misfits
from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class FittingResumeHook(Hook):
    """Refuse to resume from a checkpoint of another model, optimizer or schedule.

    mmengine loads the weights that it finds a place for and pairs optimizer states and
    schedulers by their position. When a recipe has changed, a part of the model then
    starts at random, with the momentum of another part. ``tools/train.py`` adds this
    hook to every run, and with ``partly`` for ``--resume-partly``.

    Args:
        partly: Resume the weights that fit. If anything of the parameters, optimizer or
            schedulers does not, all optimizers and schedulers start afresh.

    Raises:
        ValueError: If something does not fit, and ``partly`` is not set.
    """

    # Before EMAHook exchanges weights and averages.
    priority = 'HIGHEST'

    def __init__(self, partly: bool = False) -> None:
        self.partly = partly

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare what was loaded with what was built."""
        if not runner._resume:
            return
        misfits = find_misfits(runner, checkpoint)
        if not (misfits.weights or misfits.optimizer):
            return
        found = (
            f"'{runner._load_from or 'the last checkpoint'}' does not fit this run:\n"
            f'{misfits.table()}\n'
        )
        if not self.partly:
            raise ValueError(
                f'{found}Resume by the recipe that it was trained by, or name another '
                '--work-dir; to resume what fits and start the rest afresh, add '
                '--resume-partly'
            )
        runner.logger.warning(f'{found}{_leave_out(checkpoint, misfits)}')


def _leave_out(checkpoint: dict, misfits: Misfits) -> str:
    """Remove what does not fit from a checkpoint, and say what comes of it."""
    for misfit in misfits.weights:
        # Those of other shapes; torch refuses them even if not asked to be strict.
        for name, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
            checkpoint.get(name, {}).pop(f'{prefix}{misfit.name}', None)
    if not misfits.optimizer:
        return 'Weights without a match stay as the run has begun them'
    for name in ('optimizer', 'param_schedulers'):
        checkpoint.pop(name, None)
    return (
        'Weights without a match stay as the run has begun them; ALL OPTIMIZERS AND '
        'SCHEDULERS START AFRESH'
    )
