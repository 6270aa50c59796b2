"""Compare a checkpoint to resume from with the run that was built."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

_NONE = '-'
_SHOWN = 12
# What the values of a scheduler and of an optimizer's group are told by.
_PLAIN = (int, float, str, list, tuple, dict)
_UNTOLD = ('_', 'params', 'param_names', 'initial_', 'verbose', 'optimizer')


class Misfit(NamedTuple):
    """One thing that differs: its name, and what each side has."""

    name: str
    theirs: str
    mine: str


class Misfits(NamedTuple):
    """What of a checkpoint does not fit, by what can be resumed without it."""

    weights: list[Misfit]
    optimizer: list[Misfit]

    def table(self) -> str:
        """Return aligned lines, cut where they would fill the screen."""
        parts = [_cut(self.weights), _cut(self.optimizer)]
        head = Misfit('', 'in the checkpoint', 'in this run')
        rows = [head, *parts[0], *parts[1]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            '  '.join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )
        return '\n'.join(f'  {line.rstrip()}' for line in lines)


def _cut(rows: list[Misfit]) -> list[Misfit]:
    more = len(rows) - _SHOWN
    return [*rows[:_SHOWN], Misfit(f'and {more} more', '', '')] if more > 0 else rows


def find_misfits(runner: Runner, checkpoint: Mapping[str, Any]) -> Misfits:
    """Return where a checkpoint and a runner that is about to resume it differ.

    Args:
        runner: A runner with its model, optimizer and schedulers built.
        checkpoint: What mmengine has saved, before any hook has changed it.
    """
    model: Any = runner.model
    model = model.module if is_model_wrapper(model) else model
    state = {
        key.removeprefix('module.'): value
        for key, value in checkpoint['state_dict'].items()
    }
    weights = [*_weights(model, state), *_average(runner, checkpoint)]
    optimizer = [
        *_order(model, state),
        *_optimizers(runner, checkpoint.get('optimizer') or {}),
        *_schedulers(runner, checkpoint.get('param_schedulers') or []),
    ]
    return Misfits(weights, optimizer)


def _weights(model: nn.Module, state: Mapping[str, Any]) -> Iterator[Misfit]:
    own = model.state_dict()
    for key in [*own, *(key for key in state if key not in own)]:
        theirs, mine = (_shape(some, key) for some in (state, own))
        if theirs != mine:
            yield Misfit(key, theirs, mine)


def _shape(state: Mapping[str, Any], key: str) -> str:
    if key not in state:
        return _NONE
    value = state[key]
    shape = getattr(value, 'shape', None)
    return type(value).__name__ if shape is None else str(tuple(shape))


def _average(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[Misfit]:
    """Beside an average, what counts as the weights is the average."""
    mine = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    theirs = 'ema_state_dict' in checkpoint
    if theirs != mine:
        yield Misfit('average of EMAHook', _there(theirs), _there(mine))


def _there(there: bool) -> str:
    return 'there' if there else _NONE


def _order(model: nn.Module, state: Mapping[str, Any]) -> Iterator[Misfit]:
    """Optimizers know parameters by their place alone."""
    own = model.state_dict()
    buffers = own.keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    theirs, mine = (
        [f'{key} {_shape(some, key)}' for key in some if key not in buffers]
        for some in (state, own)
    )
    pairs = enumerate(zip_longest(theirs, mine, fillvalue=_NONE))
    different = next((place for place in pairs if len({*place[1]}) > 1), None)
    if different is not None:
        yield Misfit(f'parameter {different[0]} of the model', *different[1])


def _optimizers(runner: Runner, theirs: Mapping[str, Any]) -> Iterator[Misfit]:
    states = _by_name(theirs), _by_name(runner.optim_wrapper.state_dict())
    for name in sorted(states[0].keys() | states[1].keys()):
        if name not in states[0] or name not in states[1]:
            yield Misfit(name, *(_there(name in state) for state in states))
        else:
            yield from _optimizer(name, states[0][name], states[1][name])


def _by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    if 'param_groups' in state:
        return {'optimizer': state}
    return {f'optimizer {name}': one for name, one in state.items()}


def _optimizer(name: str, theirs: Any, mine: Any) -> Iterator[Misfit]:
    if not isinstance(theirs, Mapping) or 'param_groups' not in theirs:
        yield Misfit(name, type(theirs).__name__, 'there')
        return
    scaled = ['loss_scaler' in state for state in (theirs, mine)]
    if scaled[0] != scaled[1]:
        yield Misfit(f'{name}: loss scale of --amp', *map(_there, scaled))
    groups = theirs['param_groups'], mine['param_groups']
    if len(groups[0]) != len(groups[1]):
        yield Misfit(f'{name}: groups', *(str(len(some)) for some in groups))
        return
    for place, pair in enumerate(zip(*groups, strict=True)):
        sizes = [len(group['params']) for group in pair]
        if sizes[0] != sizes[1]:
            told = (f'{size} parameters' for size in sizes)
            yield Misfit(f'{name}: group {place}', *told)
        yield from _settings(f'{name}: settings of group {place}', *pair)


def _schedulers(runner: Runner, theirs: Any) -> Iterator[Misfit]:
    lists = _lists(theirs), _lists(runner.param_schedulers or [])
    for name in sorted(lists[0].keys() | lists[1].keys()):
        pair = [some.get(name, []) for some in lists]
        if len(pair[0]) != len(pair[1]):
            yield Misfit(name, *(str(len(some)) for some in pair))
            continue
        for place, (state, scheduler) in enumerate(zip(*pair, strict=True)):
            told = f'{name}[{place}], {type(scheduler).__name__}'
            yield from _settings(told, state, scheduler.state_dict())


def _lists(schedulers: Any) -> dict[str, Any]:
    if isinstance(schedulers, Mapping):
        return {f'param_scheduler.{name}': some for name, some in schedulers.items()}
    return dict(param_scheduler=schedulers)


def _settings(name: str, theirs: Any, mine: Mapping[str, Any]) -> Iterator[Misfit]:
    """Tell two kinds apart by the names of their numbers.

    Switches and what is private come and go with the versions of the packages.
    """
    if not isinstance(theirs, Mapping):
        yield Misfit(name, type(theirs).__name__, ', '.join(_told(mine)))
        return
    sides = (
        [key for key in _told(some) if key not in other]
        for some, other in ((theirs, mine), (mine, theirs))
    )
    texts = [', '.join(keys) or _NONE for keys in sides]
    if texts != [_NONE, _NONE]:
        yield Misfit(name, *texts)


def _told(settings: Mapping[str, Any]) -> list[str]:
    return [
        key
        for key, value in settings.items()
        if isinstance(value, _PLAIN)
        and not isinstance(value, bool)
        and not key.startswith(_UNTOLD)
    ]
