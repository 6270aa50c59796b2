"""Mixed precision on GPUs and CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from kdtoolbox.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Run the forward in bfloat16, which also works on a CPU.

    It needs no loss scale: bfloat16 has the exponent range of float32, so gradients do
    not underflow.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the operations that allow it in bfloat16 while the losses are computed.

        Raises:
            ValueError: If an op of the model does not support bfloat16. On a CPU these
                are nms and RoIAlign of mmcv.
        """
        device = next(model.parameters()).device.type
        try:
            with super().optim_context(model), torch.autocast(device, torch.bfloat16):
                yield
        except RuntimeError as error:
            if 'BFloat16' not in str(error):
                raise
            raise ValueError(
                f'an op of {type(model).__name__} has no bfloat16 on this {device} '
                f'({str(error).splitlines()[0]}); two-stage detectors use nms and '
                'RoIAlign, which do not support it on a CPU. Train without --amp'
            ) from error


def use_mixed_precision(cfg: Config) -> None:
    """Set the optimizer wrapper of a config to one with mixed precision.

    On a CPU this is `AutocastOptimWrapper`. On other devices it is mmengine's
    ``AmpOptimWrapper``, with a dynamic loss scale unless the config sets another.

    Raises:
        ValueError: If the config has several optimizers, or another kind of wrapper.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    if 'optimizer' not in wrapper or name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp: expected optim_wrapper to be an OptimWrapper with one optimizer, '
            f'got {name} with {sorted(wrapper)}; leave --amp out and set '
            "type='AmpOptimWrapper' in the config where it should be"
        )
    if get_device() != 'cpu':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    wrapper.type = 'kdtoolbox.AutocastOptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
