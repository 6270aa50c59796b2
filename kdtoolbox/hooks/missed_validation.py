"""Repeat a validation that was due but not finished before a run was killed."""

from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.registry import HOOKS

_RECORD = 'last_validation'


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validate a resumed checkpoint if its validation was due but not finished.

    mmengine saves a checkpoint before it validates, and a resumed run continues after
    both. If the run was killed in between, the scores of that checkpoint are missing,
    and the best checkpoint may be wrong. The file ``last_validation`` in the work dir
    contains the iteration of the last finished validation. ``tools/train.py`` adds
    this hook to every run, after all others.
    """

    # Runs after all other hooks have prepared the run or finished a validation.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Run a missed validation before the training continues."""
        if _is_due(runner) and _last_validation(runner) != runner.iter:
            runner.logger.info(
                f'validating the checkpoint of iteration {runner.iter}, since the '
                'previous run did not finish its validation'
            )
            _validate(runner)
        elif _last_validation(runner) != runner.iter:
            # The record is from an abandoned branch, whose iteration this run may
            # reach again.
            _remove_record(runner)

    @master_only
    def after_val(self, runner: Runner) -> None:
        """Record that the validation of this iteration is finished."""
        with write_whole(_record(runner)) as file:
            file.write(str(runner.iter).encode())


def _record(runner: Runner) -> Path:
    return Path(runner.work_dir) / _RECORD


def _last_validation(runner: Runner) -> int | None:
    """Return the recorded iteration.

    The main process reads it, since others may have no access to the work dir.
    """
    iteration: list[int | None] = [None]
    if is_main_process() and _record(runner).is_file():
        text = _record(runner).read_text(errors='replace')
        iteration[0] = int(text) if text.isdecimal() else None
    broadcast_object_list(iteration)
    return iteration[0]


@master_only
def _remove_record(runner: Runner) -> None:
    _record(runner).unlink(missing_ok=True)


def _is_due(runner: Runner) -> bool:
    """Return whether the loop validates at the current progress of the run."""
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
        return False
    if runner.val_loop is None or runner.iter == 0:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, end = (
        (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    )
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


def _validate(runner: Runner) -> None:
    """Run the validation as if the resumed checkpoint had just been saved."""
    savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for saver in savers:
        # CheckpointHook saves its last checkpoint again with the new best score.
        step = runner.epoch if saver.by_epoch else runner.iter
        name = saver.filename_tmpl.format(step)
        saver.last_ckpt = saver.file_backend.join_path(saver.out_dir, name)
    runner.val_loop.run()
    for saver in savers:
        if not saver.file_backend.exists(saver.last_ckpt):
            # The run resumed from another folder, and the checkpoint is not the best.
            saver.last_ckpt = None
