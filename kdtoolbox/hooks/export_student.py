"""Keep a plain student beside each checkpoint of a distillation."""

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.checkpoint import export_student
from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Write ``student_<name>.pth`` beside each saved and best checkpoint.

    The file is a plain mmdet or mmseg checkpoint. It goes when its checkpoint goes, as
    ``max_keep_ckpts`` has it.

    Raises:
        ValueError: If the runner saves no checkpoints, or not to a local folder.
    """

    # After CheckpointHook, which is VERY_LOW.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._due = False
        self._written: dict[Path, Path] = {}

    def before_train(self, runner: Runner) -> None:
        """Find the folder of the checkpoints."""
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if not savers:
            raise ValueError(
                'ExportStudentHook exports what CheckpointHook saves; set '
                "default_hooks.checkpoint=dict(type='CheckpointHook')"
            )
        if '://' in str(savers[0].out_dir):
            raise ValueError(
                f'ExportStudentHook writes to local folders, not to '
                f'{savers[0].out_dir}; export with tools/export_student.py instead'
            )
        self._saver = savers[0]
        # What a run before this one has left goes with its checkpoint as well.
        for student in Path(self._saver.out_dir).glob('student_*.pth'):
            checkpoint = student.with_name(student.name.removeprefix('student_'))
            if checkpoint.exists():
                self._written[checkpoint] = student
        # It may have been killed between the two, too.
        for checkpoint in self._resumed(runner):
            self._write(checkpoint)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note that a checkpoint is about to be written."""
        self._due = True

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Export a checkpoint saved by iteration."""
        self._export()

    def after_train_epoch(self, runner: Runner) -> None:
        """Export a checkpoint saved by epoch."""
        self._export()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Export a best checkpoint."""
        self._export()

    @master_only
    def _export(self) -> None:
        if not self._due:
            return
        self._due = False
        for checkpoint in self._checkpoints():
            self._write(checkpoint)
        for checkpoint in [path for path in self._written if not path.exists()]:
            self._written.pop(checkpoint).unlink(missing_ok=True)

    @master_only
    def _write(self, checkpoint: Path) -> None:
        student = checkpoint.with_name(f'student_{checkpoint.name}')
        if (
            not student.exists()
            or student.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns
        ):
            export_student(checkpoint, student)
        self._written[checkpoint] = student

    def _resumed(self, runner: Runner) -> list[Path]:
        """Return the best checkpoint and the one that the run goes on with."""
        found = self._checkpoints()
        if runner._resume and runner._load_from is not None:
            source, folder = Path(runner._load_from), Path(self._saver.out_dir)
            if source.resolve().parent == folder.resolve():
                found.append(folder / source.name)
        return found

    def _checkpoints(self) -> list[Path]:
        """Return the last and the best checkpoints, and no other file."""
        several = getattr(self._saver, 'best_ckpt_path_dict', {}).values()
        single = getattr(self._saver, 'best_ckpt_path', None)
        named = [self._saver.last_ckpt, single, *several]
        paths = {Path(name) for name in named if name is not None}
        return [path for path in paths if path.exists()]
