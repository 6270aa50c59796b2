"""The number type, memory layout and compilation of a frozen model."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdtoolbox.recorders import Records, heed_hooks

_DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


class Precision:
    """How a frozen model computes; by default as it was built.

    Args:
        dtype: 'bfloat16' or 'float16' for weights and maps.
        channels_last: Store weights and maps with the channels last.
        compile: Compile the parts of the model with ``torch.compile``.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If a value is not supported.

    Example:
        >>> model = nn.Conv2d(3, 8, 1)
        >>> Precision('bfloat16').apply(model)
        >>> model.weight.dtype
        torch.bfloat16
    """

    def __init__(
        self,
        dtype: str | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - the key of mmengine's configs
        where: str = 'model.teacher',
    ) -> None:
        for key, value in dict(channels_last=channels_last, compile=compile).items():
            if not isinstance(value, bool):
                raise ValueError(
                    f'{where}.{key}: expected True or False, got {value!r}; write '
                    f'{key}=True'
                )
        if dtype is not None and str(dtype) not in _DTYPES:
            raise ValueError(
                f"{where}.dtype: expected 'bfloat16', 'float16' or None, got "
                f"{dtype!r}; write dtype='bfloat16'"
            )
        self.dtype = None if dtype is None else _DTYPES[dtype]
        self.channels_last = channels_last
        self.where = where
        self.compiled = bool(compile)

    def apply(self, model: nn.Module) -> None:
        """Convert a model in place.

        Raises:
            ValueError: If an op of the model does not support the layout.
        """
        if self.dtype is not None:
            # Its mean and std are read, not computed with; they would be rounded.
            exact = copy.deepcopy(getattr(model, 'data_preprocessor', None))
            model.to(self.dtype)
            if exact is not None:
                model.data_preprocessor = exact
        if self.channels_last:
            self._check_ops(model)
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compile(model)

    def _check_ops(self, model: nn.Module) -> None:
        kinds = {type(module) for module in model.modules()}
        ops = sorted(k.__name__ for k in kinds if k.__module__.startswith('mmcv.ops'))
        if ops:
            raise ValueError(
                f'{self.where}.channels_last: {", ".join(ops)} of mmcv read maps as if '
                'their channels came first, whatever the layout, so the features would '
                'be wrong; remove `channels_last`'
            )

    def compile(self, model: nn.Module) -> None:
        """Compile the parts of a model; a copy of a compiled model is not compiled."""
        if self.compiled:
            heed_hooks()
            for name, part in model.named_children():
                if name != 'data_preprocessor':
                    part.compile()

    def keep(self, old: Tensor, new: Tensor) -> Tensor:
        """Return a converted tensor in the type that it has here.

        ``distiller.float()`` changes the student's type alone.
        """
        if self.dtype is None or new.dtype == old.dtype:
            return new
        moved = old.to(new.device)
        return old if moved is old else moved

    @contextmanager
    def computing(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield images as the model needs them, where it computes in its own type."""
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self.dtype is None:
            yield inputs
            return
        # Mixed precision of the student would choose another type for each layer.
        with torch.autocast(inputs.device.type, enabled=False):
            yield inputs.to(self.dtype)

    def back(self, records: Records, like: Tensor) -> Records:
        """Return records in the type of the student's images."""
        if self.dtype is None:
            return records
        return {
            name: [x.to(like.dtype) if x.is_floating_point() else x for x in levels]
            for name, levels in records.items()
        }
