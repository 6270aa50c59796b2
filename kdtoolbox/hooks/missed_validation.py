"""Make up for a validation that a kill has prevented."""

from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.registry import HOOKS

_RECORD = 'last_validation'


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validate a resumed checkpoint where that is due and was never finished.

    mmengine saves first and validates then, and a resumed run goes on after both. When
    the first was killed between them, the scores of that checkpoint were missing, and
    the best one could be another. A file ``last_validation`` in the work dir holds the
    iteration of the last validation that was finished. ``tools/train.py`` adds this
    hook to every run, after all others.
    """

    # Once all others have prepared the run, and are through with a validation.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Validate before the training goes on, or ends."""
        if _is_due(runner) and _last_validation(runner) != runner.iter:
            runner.logger.info(
                f'validating what was resumed at iteration {runner.iter}, since the '
                'run before has not finished that'
            )
            _validate(runner)
        elif _last_validation(runner) != runner.iter:
            # It is of a course that this run has left, and may come to again.
            _forget(runner)

    @master_only
    def after_val(self, runner: Runner) -> None:
        """Note that this iteration is validated, its best checkpoint written."""
        with write_whole(_record(runner)) as file:
            file.write(str(runner.iter).encode())


def _record(runner: Runner) -> Path:
    return Path(runner.work_dir) / _RECORD


def _last_validation(runner: Runner) -> int | None:
    """Return what the first process reads; the others may see no work dir."""
    found: list[int | None] = [None]
    if is_main_process() and _record(runner).is_file():
        text = _record(runner).read_text(errors='replace')
        found[0] = int(text) if text.isdecimal() else None
    broadcast_object_list(found)
    return found[0]


@master_only
def _forget(runner: Runner) -> None:
    _record(runner).unlink(missing_ok=True)


def _is_due(runner: Runner) -> bool:
    """Return whether the loop would have validated where the run is."""
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
        # It saves its last checkpoint again, with the new best score in it.
        step = runner.epoch if saver.by_epoch else runner.iter
        name = saver.filename_tmpl.format(step)
        saver.last_ckpt = saver.file_backend.join_path(saver.out_dir, name)
    runner.val_loop.run()
    for saver in savers:
        if not saver.file_backend.exists(saver.last_ckpt):
            # Resumed from another folder, and not the best.
            saver.last_ckpt = None
