"""Find code that makes tensors on the CPU, or that lets the host wait for the device.

Two modes of torch see every call, also on a machine without a GPU. Both take a call for
that of the innermost frame outside torch.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = """
arange as_tensor asarray bartlett_window blackman_window empty empty_strided eye
from_numpy full hamming_window hann_window kaiser_window linspace logspace normal ones
rand randint randn randperm scalar_tensor tensor tril_indices triu_indices zeros
"""
FACTORIES = {getattr(torch, name) for name in NAMES.split()}
"""Without `device` they make a tensor on the CPU."""

FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""On numbers of Python they wait for a copy to the device."""

TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
"""On the CPU they run no operator that would show the wait."""

WAITS = {
    '_linalg_check_errors',
    '_local_scalar_dense',
    '_unique',
    '_unique2',
    'bincount',
    'equal',
    'histc',
    'is_nonzero',
    'masked_select',
    'multinomial',
    'nonzero',
    'unique_consecutive',
    'unique_dim',
    'unique_dim_consecutive',
}
"""Operators of which the host has to know the result, its size, or an error."""

BY_MASK = {'index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'}
TORCH = str(Path(torch.__file__).parent)
Ours = Callable[[FrameType], bool]


@contextmanager
def device_discipline(ours: Ours = lambda frame: True) -> Iterator[list[str]]:
    """Yield a list that gets one line for each call that is not fit for a GPU.

    A line is ``package.module.function:line: what``.

    Args:
        ours: Whether the calls of a frame count.
    """
    found: list[str] = []

    def note(what: str) -> None:
        frame = inspect.currentframe()
        while frame.f_code.co_filename.startswith((TORCH, __file__)):
            frame = frame.f_back
        # A module runs once, when it is imported.
        function = frame.f_code.co_name
        if ours(frame) and function != '<module>':
            module = frame.f_globals['__name__']
            found.append(f'{module}.{function}:{frame.f_lineno}: {what}')

    with _Functions(note), _Operators(note):
        yield found


class _Functions(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', func)
        given = args[1:] if func is Tensor.new_tensor else args
        like = any(isinstance(x, Tensor) for x in given)
        host = any(isinstance(x, str) and x == 'cpu' for x in (*args, *kwargs.values()))
        if func in FACTORIES and not like and kwargs.get('device') is None:
            self.note(f'{name} without a device makes a tensor on the CPU')
        elif func in FROM_HOST and not like and not host:
            self.note(f'{name} waits for a copy to the device')
        elif func in TO_HOST or (func is Tensor.to and host):
            self.note(f'{name} waits for the device')
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [*_tensors((*args, *kwargs.values()))]
        # A number of Python is a tensor without dimensions.
        devices = {str(x.device) for x in tensors if x.dim()}
        if name == '_to_copy':
            devices = _ends_of_copy(args[0], **kwargs)
        if len(devices) > 1:
            self.note(f'{name} of tensors on {" and ".join(sorted(devices))}')
        by_mask = name in BY_MASK and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        unsized = name == 'repeat_interleave' and kwargs.get('output_size') is None
        if name in WAITS or by_mask or unsized:
            self.note(f'{name} waits for the device')
        return func(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _ends_of_copy(source: Tensor, **options: Any) -> set[str]:
    """Return the devices of a copy that waits."""
    goal = options.get('device') or source.device
    if source.device.type == 'cpu' and options.get('non_blocking'):
        return {str(goal)}
    return {str(source.device), str(goal)}
