"""Prevent a resumed run from removing the best checkpoint of another run."""

from pathlib import Path

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Let a resumed run replace only the best checkpoint in its own folder.

    A checkpoint contains the path of the best one, and mmengine removes that file when
    it saves a better one. If the run resumes in another folder, or in a copy of the
    folder, the file belongs to another run. ``tools/train.py`` adds this hook to every
    run.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace the path of the best checkpoint by one in this run's folder."""
        info = checkpoint.get('message_hub', {}).get('runtime_info', {})
        for key in [key for key in info if key.startswith('best_ckpt')]:
            path = _checkpoint_folder(runner) / Path(info[key]).name
            if path.exists():
                info[key] = str(path)
            else:
                del info[key]


def _checkpoint_folder(runner: Runner) -> Path:
    work_dir = Path(runner.work_dir)
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.out_dir is not None:
            return Path(hook.out_dir) / work_dir.name
    return work_dir
