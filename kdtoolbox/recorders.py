"""Record inputs and outputs of named submodules during one forward."""

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

Recorder = str | Mapping[str, str]
Records = dict[str, list[Tensor]]

# Models call the members of a container one by one, so its own hooks never run.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class _AllRecorded(Exception):  # noqa: N818 - it reports success
    """Ends a forward once everything is recorded."""


@contextmanager
def record(
    model: nn.Module,
    recorders: Mapping[str, Recorder],
    *,
    require_grad: bool = False,
    stop_early: bool = False,
    where: str = 'recorders',
) -> Iterator[Records]:
    """Record outputs or inputs of submodules while the block runs.

    Args:
        model: The model whose forward runs inside the block.
        recorders: For each name a module path, or ``dict(source=path, what=...)`` with
            ``what`` of 'output' (default) or 'input'. Paths are those of
            ``named_modules``. Also allowed are ``[2]``, negative indices, and globs for
            one component (``neck.fpn_convs.*``, ``neck.fpn_convs.[0-3]``).
        require_grad: Raise an error for records that carry no gradient.
        stop_early: End the forward once every recorded part of the model has run. This
            also skips the rest of the block.
        where: Config path for error messages.

    Yields:
        A list of tensors for each name, in the order of the calls. Tuples, lists and
        dicts of tensors are flattened. The lists are complete when the block ends.

    Raises:
        ValueError: If a path matches no module, or a container that is never called;
            if a module was not called in the block; if a recorded tensor was
            overwritten in place, or carries no gradient and ``require_grad`` is set.
        TypeError: If a recorded input or output contains no tensor.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> with record(model, {'last': '[-1]', 'hidden': '1'}) as records:
        ...     _ = model(torch.zeros(2, 3, 5, 5))
        >>> {name: tuple(tensors[0].shape) for name, tensors in records.items()}
        {'last': (2, 4, 5, 5), 'hidden': (2, 8, 5, 5)}
    """
    observers = {
        name: _Observer(model, recorder, f'{where}.{name}')
        for name, recorder in recorders.items()
    }
    records: Records = {name: seen.tensors for name, seen in observers.items()}
    handles = [handle for seen in observers.values() for handle in seen.attach()]
    done = _AllRecorded()
    if stop_early:
        paths = {path for seen in observers.values() for path in seen.modules}
        ends = {_stop_point(model, path) for path in paths}
        handles += _attach_stop(model, ends, done)
    try:
        yield records
    except _AllRecorded as ended:
        # An enclosing `record` may have ended the forward.
        if ended is not done:
            raise
    finally:
        for handle in handles:
            handle.remove()
    for seen in observers.values():
        seen.check(require_grad)


def check_recorders(
    model: nn.Module, recorders: Mapping[str, Recorder], where: str
) -> None:
    """Raise the error of ``record`` for paths that cannot be recorded."""
    for name, recorder in recorders.items():
        _Observer(model, recorder, f'{where}.{name}')


def find_modules(model: nn.Module, path: str, where: str) -> dict[str, nn.Module]:
    """Return the modules that match ``path``, keyed by their full names.

    Raises:
        ValueError: If no module matches; the message lists similar names.
    """
    # Only `[2]` and `[-1]` are indices; `[0-3]` is a range in a glob.
    parts = re.sub(r'\[(-?\d+)\]', r'.\1', path).strip('.').split('.')
    found = {'': model}
    for part in parts:
        found = {
            f'{name}.{key}'.strip('.'): child
            for name, module in found.items()
            for key, child in module.named_children()
            if fnmatchcase(key, _positive(part, module))
        }
    if hasattr(model, '_orig_mod'):
        raise ValueError(
            f'{where}: torch.compile has wrapped the model, which renames its modules '
            'and weights; compile it in place, `model.compile()`'
        )
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        close = difflib.get_close_matches('.'.join(parts), names, n=4, cutoff=0.4)
        raise ValueError(
            f'{where}: {type(model).__name__} has no module {path!r}; '
            f'nearest: {", ".join(close) or "none"}'
        )
    return found


def heed_hooks() -> None:
    """Make torch.compile notice hooks that are added or removed later.

    By default, compiled code keeps the hooks that a module had during compilation, so
    a recording that begins later records nothing. Affects later compilations only.
    """
    importlib.import_module('torch._dynamo').config.skip_nnmodule_hook_guards = False


def _positive(part: str, module: nn.Module) -> str:
    if part.startswith('-') and part[1:].isdigit():
        return str(len(list(module.children())) + int(part))
    return part


def _stop_point(model: nn.Module, path: str) -> str:
    """Return the outermost module around ``path`` that is called once per forward."""
    parts = path.split('.')
    # A neck or a head may call a module once per level, so wait for the whole part. A
    # stage of a backbone runs only once.
    first = 2 if parts[0] == 'backbone' else 1
    for length in range(min(first, len(parts)), len(parts)):
        name = '.'.join(parts[:length])
        if not isinstance(model.get_submodule(name), _CONTAINERS):
            return name
    return path


def _attach_stop(model: nn.Module, pending: set[str], done: _AllRecorded) -> list:
    def stop(name: str, *_: Any) -> None:
        pending.discard(name)
        if not pending:
            raise done

    return [
        model.get_submodule(name).register_forward_hook(partial(stop, name))
        for name in pending
    ]


class _Observer:
    """Record the tensors of one recorder and check them."""

    def __init__(self, model: nn.Module, recorder: Recorder, where: str) -> None:
        spec = {'source': recorder} if isinstance(recorder, str) else recorder
        if (
            not isinstance(spec, Mapping)
            or not {'source'} <= spec.keys() <= {'source', 'what'}
            or spec.get('what', 'output') not in ('output', 'input')
            or not isinstance(spec['source'], str)
        ):
            raise ValueError(
                f'{where}: expected a module path or dict(source=path, what="output" '
                f'or "input"), got {recorder!r}'
            )
        self.where = where
        self.what = spec.get('what', 'output')
        self.modules = find_modules(model, spec['source'], where)
        self.tensors: list[Tensor] = []
        self._sources: list[tuple[str, int]] = []
        for path, module in self.modules.items():
            if isinstance(module, _CONTAINERS):
                raise ValueError(
                    f'{where}: {path!r} is a {type(module).__name__}, which is never '
                    f"called itself; record its members with '{path}.*' or the "
                    'module that contains it'
                )

    def attach(self) -> list:
        if self.what == 'input':
            return [
                module.register_forward_pre_hook(
                    partial(self._see_input, path), with_kwargs=True
                )
                for path, module in self.modules.items()
            ]
        return [
            module.register_forward_hook(partial(self._see_output, path))
            for path, module in self.modules.items()
        ]

    def _see_input(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._keep(path, [*args, *kwargs.values()])

    def _see_output(self, path: str, module: nn.Module, args: Any, out: Any) -> None:
        self._keep(path, out)

    def _keep(self, path: str, value: Any) -> None:
        tensors = list(tensors_in(value))
        if not tensors:
            raise TypeError(
                f'{self.where}: the {self.what} of {path!r} contains no tensor, '
                f'it is a {type(value).__name__}; record another module'
            )
        self.tensors += tensors
        self._sources += [(path, _version(tensor)) for tensor in tensors]

    def check(self, require_grad: bool) -> None:
        called = {path for path, _ in self._sources}
        silent = [path for path in self.modules if path not in called]
        if silent:
            raise ValueError(
                f'{self.where}: {", ".join(map(repr, silent))} was not called in this '
                'forward. Detectors often call `.forward`, `.loss` or `.predict` of a '
                'head, which skips its hooks: record a module inside or before it. '
                'Before torch.compile call kdtoolbox.recorders.heed_hooks()'
            )
        for tensor, (path, version) in zip(self.tensors, self._sources, strict=True):
            if _version(tensor) != version:
                raise ValueError(
                    f'{self.where}: the {self.what} of {path!r} was overwritten in '
                    'place after it was recorded, as by a ReLU(inplace=True); record '
                    'the module that overwrites it, or the one that contains both'
                )
            if require_grad and not tensor.requires_grad:
                raise ValueError(
                    f'{self.where}: the {self.what} of {path!r} carries no gradient, '
                    'so a loss on it trains nothing; it is in a frozen stage '
                    'or under reentrant checkpointing (with_cp=True): record a later '
                    'module'
                )


def _version(tensor: Tensor) -> int:
    # Inference tensors have no version counter, so overwriting them goes unnoticed.
    return -1 if tensor.is_inference() else tensor._version


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
