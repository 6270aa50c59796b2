"""Write checkpoints that can be read without running code."""

from io import BytesIO
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from kdtoolbox.checkpoints.plain_values import plain
from kdtoolbox.checkpoints.reading import unpickle
from kdtoolbox.registry import HOOKS

_COMPLETE = ('state_dict', 'ema_state_dict', 'optimizer')
"""Entries of a checkpoint that are useless if a part is left out."""

_PROBE = 'kdtoolbox.probe'


@HOOKS.register_module()
class ReadableCheckpointHook(Hook):
    """Convert the values of checkpoints to plain types before they are saved.

    ``read_checkpoint`` rejects a checkpoint with a function in the state of a
    scheduler, or with an object in the meta of a data set, so the run could not
    resume. This hook converts such values to plain types. Values that cannot be
    converted are left out, and the log names them. Before the first iteration the hook
    writes a checkpoint with empty tensors to memory and reads it. ``tools/train.py``
    adds it to every run, after all other hooks.

    Raises:
        ValueError: If a value of the weights or of the optimizer cannot be converted,
            or the checkpoint in memory cannot be read.
    """

    # All other hooks have to add their values to a checkpoint before.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._logged: set[str] = set()
        self._probing = False

    def before_train(self, runner: Runner) -> None:
        """Write a checkpoint to memory in the same way as to a file, and read it."""
        register_backend(_PROBE, _Probe, force=True)
        self._probing = True
        try:
            runner.save_checkpoint('', 'probe.pth', backend_args=dict(backend=_PROBE))
        finally:
            self._probing = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Convert the content of a checkpoint to plain types."""
        content, dropped = readable(checkpoint)
        checkpoint.clear()
        checkpoint.update(_emptied(content) if self._probing else content)
        new = [place for place in dropped if place not in self._logged]
        if new:
            self._logged.update(new)
            runner.logger.warning(
                'left out of the checkpoints, since reading it could run code: '
                f'{", ".join(new)}'
            )


def _emptied(value: Any) -> Any:
    """Return plain values with empty tensors of the same types."""
    if isinstance(value, Tensor):
        return value.new_empty(0)
    if isinstance(value, dict):
        return type(value)((key, _emptied(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_emptied(part) for part in value)
    return value


class _Probe(LocalBackend):
    """A file backend that reads what it should write, and stores nothing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        if not is_main_process():
            return
        try:
            unpickle(BytesIO(obj))
        except Exception as error:
            raise ValueError(
                'the checkpoints of this run could not be read again, so the run could '
                f'not be resumed: {error}'
            ) from error


def readable(checkpoint: dict) -> tuple[dict, list[str]]:
    """Return a checkpoint in plain types, and the paths of the values left out.

    Functions in the state of a scheduler are left out silently: a resumed run builds
    the scheduler with its functions before it loads the state.

    Args:
        checkpoint: The content that mmengine's runner saves. It is not modified.

    Raises:
        NotPlainError: If a value of the weights or of the optimizer would be left out.

    Example:
        >>> readable(dict(meta=dict(epoch=1, hook=print), state_dict={}))[0]
        {'state_dict': {}, 'meta': {'epoch': 1}}
    """
    dropped: list[str] = []
    content = {
        key: plain(checkpoint[key], f'checkpoint.{key}')
        for key in _COMPLETE
        if key in checkpoint
    }
    rest = {key: value for key, value in checkpoint.items() if key not in _COMPLETE}
    if 'param_schedulers' in rest:
        rest['param_schedulers'] = _without_functions(rest['param_schedulers'])
    return content | plain(rest, 'checkpoint', dropped), dropped


def _without_functions(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        # A run with several optimizers has one list for each.
        return {name: _without_functions(some) for name, some in schedulers.items()}
    return [
        {key: value for key, value in state.items() if not callable(value)}
        for state in schedulers
    ]
