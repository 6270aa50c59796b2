"""Write checkpoints that the run's own reader reads."""

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

_WHOLE = ('state_dict', 'ema_state_dict', 'optimizer')
"""What is of no use with a part missing."""

_PROBE = 'kdtoolbox.probe'


@HOOKS.register_module()
class ReadableCheckpointHook(Hook):
    """Keep out of checkpoints what could only be read by running it.

    A function in the state of a scheduler, or an object in the meta of a data set,
    makes a checkpoint that ``read_checkpoint`` refuses, so that the run cannot resume.
    This hook writes such values in plain types and leaves out what has none, which the
    log tells. Before the first iteration it writes and reads a checkpoint in memory,
    with tensors of no size.
    ``tools/train.py`` adds it to every run, after all other hooks.

    Raises:
        ValueError: If the weights or the state of the optimizer hold such a value, or
            the checkpoint in memory cannot be read.
    """

    # What the other hooks put into a checkpoint is looked at, too.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._probing = False

    def before_train(self, runner: Runner) -> None:
        """Write a checkpoint as the run's own ones are written, and read it."""
        register_backend(_PROBE, _Probe, force=True)
        self._probing = True
        try:
            runner.save_checkpoint('', 'probe.pth', backend_args=dict(backend=_PROBE))
        finally:
            self._probing = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turn the content of a checkpoint into plain types."""
        content, dropped = readable(checkpoint)
        checkpoint.clear()
        checkpoint.update(_emptied(content) if self._probing else content)
        new = [place for place in dropped if place not in self._told]
        if new:
            self._told.update(new)
            runner.logger.warning(
                f'left out of the checkpoints, since it could only be read by running '
                f'it: {", ".join(new)}'
            )


def _emptied(value: Any) -> Any:
    """Return plain values with tensors of their kind and of no size."""
    if isinstance(value, Tensor):
        return value.new_empty(0)
    if isinstance(value, dict):
        return type(value)((key, _emptied(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_emptied(part) for part in value)
    return value


class _Probe(LocalBackend):
    """Storage that reads what it is given, and keeps nothing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        if not is_main_process():
            return
        try:
            unpickle(BytesIO(obj))
        except Exception as error:
            raise ValueError(
                'the checkpoints of this run could not be read again, nor the run '
                f'resumed: {error}'
            ) from error


def readable(checkpoint: dict) -> tuple[dict, list[str]]:
    """Return a checkpoint in plain types, and the places of what it lost by that.

    Functions in the state of a scheduler do not count as lost: the scheduler that takes
    the state was built with its own.

    Args:
        checkpoint: What mmengine's runner is about to save; it is left as it is.

    Raises:
        NotPlainError: If the weights or the state of the optimizer would lose anything.

    Example:
        >>> readable(dict(meta=dict(epoch=1, hook=print), state_dict={}))[0]
        {'state_dict': {}, 'meta': {'epoch': 1}}
    """
    dropped: list[str] = []
    content = {
        key: plain(checkpoint[key], f'checkpoint.{key}')
        for key in _WHOLE
        if key in checkpoint
    }
    rest = {key: value for key, value in checkpoint.items() if key not in _WHOLE}
    if 'param_schedulers' in rest:
        rest['param_schedulers'] = _without_functions(rest['param_schedulers'])
    return content | plain(rest, 'checkpoint', dropped), dropped


def _without_functions(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        # One list for each of several optimizers.
        return {name: _without_functions(some) for name, some in schedulers.items()}
    return [
        {key: value for key, value in state.items() if not callable(value)}
        for state in schedulers
    ]
