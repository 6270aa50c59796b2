"""Write the plain student beside each checkpoint of a distillation."""

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from kdtoolbox.checkpoints.student_export import write_student
from kdtoolbox.checkpoints.weights import load_checkpoint
from kdtoolbox.registry import HOOKS
from kdtoolbox.runs.student_config import is_pretraining, write_student_config

_CONFIG = 'student.py'
_NOTE = 'exported_students'


@HOOKS.register_module()
class ExportStudentHook(Hook):
    """Write ``student_<name>.pth`` beside each saved and best checkpoint.

    The file is a plain mmdet or mmseg checkpoint. It is removed with its checkpoint,
    for example because of ``max_keep_ckpts``. Its config is ``student.py`` in the same
    folder. ``init_detector`` and ``init_model`` accept the two files. A `Pretrainer`
    writes no config, since it has only parts of a model.

    Raises:
        ValueError: If the runner saves no checkpoints or not to a local folder, or if
            the run's config is called ``student.py``, too.
    """

    # CheckpointHook has the priority VERY_LOW and has to run before.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._saved: dict | None = None
        self._written: dict[Path, Path] = {}

    def before_train(self, runner: Runner) -> None:
        """Write the student's config, and complete the exports of a resumed run."""
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
        self._write_config(runner)
        self._remove_orphans(runner)
        # Students of an earlier run are removed with their checkpoints as well.
        for student in Path(self._saver.out_dir).glob('student_*.pth'):
            checkpoint = _checkpoint_of(student)
            if checkpoint.exists():
                self._written[checkpoint] = student
        # The run may have been killed before it wrote the student of a checkpoint.
        for checkpoint in self._resumed(runner):
            self._write(checkpoint)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep a reference to the content until the name of its file is known."""
        # The dict itself and not a copy, since later hooks may change it.
        self._saved = checkpoint
        # This checkpoint's student is not written yet; the next checkpoint lists it.
        names = sorted(path.name for path in self._written.values())
        checkpoint['message_hub']['runtime_info'][_NOTE] = names
        checkpoint['message_hub']['resumed_keys'][_NOTE] = True

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
        if self._saved is None:
            return
        for checkpoint in self._checkpoints():
            self._write(checkpoint, self._saved)
        self._saved = None
        for checkpoint in [path for path in self._written if not path.exists()]:
            self._written.pop(checkpoint).unlink(missing_ok=True)

    @master_only
    def _remove_orphans(self, runner: Runner) -> None:
        """Remove the run's students whose checkpoints no longer exist.

        They remain if the run was killed after it removed a checkpoint. Other
        students in the folder are kept.
        """
        folder = Path(self._saver.out_dir)
        resumed = Path(runner._load_from or '').resolve().parent == folder.resolve()
        for name in runner.message_hub.runtime_info.get(_NOTE, []) if resumed else []:
            student = folder / Path(name).name
            if student.match('student_*.pth') and not _checkpoint_of(student).exists():
                student.unlink(missing_ok=True)

    @master_only
    def _write_config(self, runner: Runner) -> None:
        if 'student' not in (runner.cfg.get('model') or {}) or is_pretraining(
            runner.cfg
        ):
            # A runner that was built from objects has no config of its model, and
            # parts of a student are no model.
            return
        if Path(runner.cfg.filename or '').name == _CONFIG:
            raise ValueError(
                f"ExportStudentHook writes the student's config as {_CONFIG}, but the "
                f"run's config, {runner.cfg.filename}, has that name too; rename it"
            )
        folder = Path(self._saver.out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_student_config(runner.cfg, folder / _CONFIG)

    @master_only
    def _write(self, checkpoint: Path, content: dict | None = None) -> None:
        student = checkpoint.with_name(f'student_{checkpoint.name}')
        if (
            not student.exists()
            or student.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns
        ):
            write_student(content or load_checkpoint(checkpoint), student)
        self._written[checkpoint] = student

    def _resumed(self, runner: Runner) -> list[Path]:
        """Return the best checkpoint and the one that the run resumes from."""
        paths = self._checkpoints()
        if runner._resume and runner._load_from is not None:
            source, folder = Path(runner._load_from), Path(self._saver.out_dir)
            if source.resolve().parent == folder.resolve():
                paths.append(folder / source.name)
        return paths

    def _checkpoints(self) -> list[Path]:
        """Return the last and the best checkpoints that exist."""
        several = getattr(self._saver, 'best_ckpt_path_dict', {}).values()
        single = getattr(self._saver, 'best_ckpt_path', None)
        named = [self._saver.last_ckpt, single, *several]
        paths = {Path(name) for name in named if name is not None}
        return [path for path in paths if path.exists()]


def _checkpoint_of(student: Path) -> Path:
    return student.with_name(student.name.removeprefix('student_'))
