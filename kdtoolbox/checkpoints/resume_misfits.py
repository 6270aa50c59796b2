"""Compare a checkpoint to resume from with the run that was built."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

_NONE = '-'
_MAX_ROWS = 12
# The settings of a scheduler or of an optimizer's group that identify its kind.
_SETTING_TYPES = (int, float, str, list, tuple, dict)
_OTHER_SETTINGS = (
    '_',
    'params',
    'param_names',
    'initial_',
    'verbose',
    'optimizer',
)


class Difference(NamedTuple):
    """A part of a run that differs from the checkpoint.

    Attributes:
        name: Name of the part.
        in_checkpoint: Description of the part in the checkpoint.
        in_run: Description of the part in the run.
    """

    name: str
    in_checkpoint: str
    in_run: str


class Misfits(NamedTuple):
    """The differences between a checkpoint and a run.

    Attributes:
        weights: Differences of the weights.
        optimizer: Differences of the parameters' order, optimizers and schedulers.
    """

    weights: list[Difference]
    optimizer: list[Difference]

    def table(self) -> str:
        """Return the differences as aligned lines; long lists are cut off."""
        head = Difference('', 'in the checkpoint', 'in this run')
        rows = [head, *_cut_off(self.weights), *_cut_off(self.optimizer)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            '  '.join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )
        return '\n'.join(f'  {line.rstrip()}' for line in lines)


def _cut_off(rows: list[Difference]) -> list[Difference]:
    more = len(rows) - _MAX_ROWS
    if more <= 0:
        return rows
    return [*rows[:_MAX_ROWS], Difference(f'and {more} more', '', '')]


def find_misfits(runner: Runner, checkpoint: Mapping[str, Any]) -> Misfits:
    """Return the differences between a checkpoint and a runner that will resume it.

    Args:
        runner: A runner whose model, optimizer and schedulers are built.
        checkpoint: The content that mmengine saved, before any hook changes it.
    """
    model: Any = runner.model
    model = model.module if is_model_wrapper(model) else model
    state = {
        key.removeprefix('module.'): value
        for key, value in checkpoint['state_dict'].items()
    }
    weights = [*_weights(model, state), *_moving_average(runner, checkpoint)]
    optimizer = [
        *_parameter_order(model, state),
        *_optimizers(runner, checkpoint.get('optimizer') or {}),
        *_schedulers(runner, checkpoint.get('param_schedulers') or []),
    ]
    return Misfits(weights, optimizer)


def _weights(model: nn.Module, saved: Mapping[str, Any]) -> Iterator[Difference]:
    built = model.state_dict()
    for key in [*built, *(key for key in saved if key not in built)]:
        in_checkpoint, in_run = _shape(saved, key), _shape(built, key)
        if in_checkpoint != in_run:
            yield Difference(key, in_checkpoint, in_run)


def _shape(state: Mapping[str, Any], key: str) -> str:
    if key not in state:
        return _NONE
    value = state[key]
    shape = getattr(value, 'shape', None)
    return type(value).__name__ if shape is None else str(tuple(shape))


def _moving_average(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> Iterator[Difference]:
    """Compare whether both have a moving average, which replaces the weights."""
    in_checkpoint = 'ema_state_dict' in checkpoint
    in_run = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    if in_checkpoint != in_run:
        yield Difference(
            'average of EMAHook', _presence(in_checkpoint), _presence(in_run)
        )


def _presence(exists: bool) -> str:
    return 'there' if exists else _NONE


def _parameter_order(
    model: nn.Module, saved: Mapping[str, Any]
) -> Iterator[Difference]:
    """Compare the order of the parameters, which optimizers identify them by."""
    built = model.state_dict()
    buffers = built.keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    in_checkpoint, in_run = (
        [f'{key} {_shape(state, key)}' for key in state if key not in buffers]
        for state in (saved, built)
    )
    pairs = enumerate(zip_longest(in_checkpoint, in_run, fillvalue=_NONE))
    different = next((item for item in pairs if len({*item[1]}) > 1), None)
    if different is not None:
        index, pair = different
        yield Difference(f'parameter {index} of the model', *pair)


def _optimizers(runner: Runner, saved: Mapping[str, Any]) -> Iterator[Difference]:
    states = _by_name(saved), _by_name(runner.optim_wrapper.state_dict())
    for name in sorted(states[0].keys() | states[1].keys()):
        if name not in states[0] or name not in states[1]:
            yield Difference(name, *(_presence(name in state) for state in states))
        else:
            yield from _optimizer(name, states[0][name], states[1][name])


def _by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    if 'param_groups' in state:
        return {'optimizer': state}
    return {f'optimizer {name}': one for name, one in state.items()}


def _optimizer(name: str, saved: Any, built: Any) -> Iterator[Difference]:
    if not isinstance(saved, Mapping) or 'param_groups' not in saved:
        yield Difference(name, type(saved).__name__, 'there')
        return
    scaled = ['loss_scaler' in state for state in (saved, built)]
    if scaled[0] != scaled[1]:
        yield Difference(f'{name}: loss scale of --amp', *map(_presence, scaled))
    groups = saved['param_groups'], built['param_groups']
    if len(groups[0]) != len(groups[1]):
        yield Difference(f'{name}: groups', *(str(len(side)) for side in groups))
        return
    for index, pair in enumerate(zip(*groups, strict=True)):
        sizes = [len(group['params']) for group in pair]
        if sizes[0] != sizes[1]:
            texts = (f'{size} parameters' for size in sizes)
            yield Difference(f'{name}: group {index}', *texts)
        yield from _settings(f'{name}: settings of group {index}', *pair)


def _schedulers(runner: Runner, saved: Any) -> Iterator[Difference]:
    sides = _scheduler_lists(saved), _scheduler_lists(runner.param_schedulers or [])
    for name in sorted(sides[0].keys() | sides[1].keys()):
        states, schedulers = (side.get(name, []) for side in sides)
        if len(states) != len(schedulers):
            yield Difference(name, str(len(states)), str(len(schedulers)))
            continue
        for index, scheduler in enumerate(schedulers):
            part = f'{name}[{index}], {type(scheduler).__name__}'
            yield from _settings(part, states[index], scheduler.state_dict())


def _scheduler_lists(schedulers: Any) -> dict[str, Sequence]:
    if isinstance(schedulers, Mapping):
        return {f'param_scheduler.{name}': some for name, some in schedulers.items()}
    return dict(param_scheduler=schedulers)


def _settings(name: str, saved: Any, built: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare the names of the settings, which identify the kind of a part.

    Flags and private entries are ignored, since they depend on package versions.
    """
    if not isinstance(saved, Mapping):
        yield Difference(name, type(saved).__name__, ', '.join(_setting_names(built)))
        return
    only_saved = [key for key in _setting_names(saved) if key not in built]
    only_built = [key for key in _setting_names(built) if key not in saved]
    if only_saved or only_built:
        texts = (', '.join(keys) or _NONE for keys in (only_saved, only_built))
        yield Difference(name, *texts)


def _setting_names(settings: Mapping[str, Any]) -> list[str]:
    return [
        key
        for key, value in settings.items()
        if isinstance(value, _SETTING_TYPES)
        and not isinstance(value, bool)
        and not key.startswith(_OTHER_SETTINGS)
    ]
