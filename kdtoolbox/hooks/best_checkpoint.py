"""Keep a run from removing the best checkpoint of another."""

from pathlib import Path

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Let a resumed run replace its own best checkpoint alone.

    A checkpoint holds the path of the best one, and mmengine removes that file once
    there is a better one, also when the run goes on in another folder or in a copy of
    its first. ``tools/train.py`` adds this hook to every run.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look for what was best in the folder of this run."""
        noted = checkpoint.get('message_hub', {}).get('runtime_info', {})
        for key in [key for key in noted if key.startswith('best_ckpt')]:
            own = _folder(runner) / Path(noted[key]).name
            if own.exists():
                noted[key] = str(own)
            else:
                del noted[key]


def _folder(runner: Runner) -> Path:
    work_dir = Path(runner.work_dir)
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.out_dir is not None:
            return Path(hook.out_dir) / work_dir.name
    return work_dir
