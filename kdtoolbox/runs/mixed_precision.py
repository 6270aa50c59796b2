"""Mixed precision on whatever device there is."""

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
    """Run the forward in bfloat16, on a CPU too.

    There is no loss scale: bfloat16 has the exponents of float32, so that no gradient
    is too small for it.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Cast what is safe to cast while the model computes its losses.

        Raises:
            ValueError: If the model has an op that knows no bfloat16, as nms and
                RoIAlign of mmcv on a CPU.
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
                f'({str(error).splitlines()[0]}), as nms and RoIAlign of two-stage '
                'detectors have none; train without --amp'
            ) from error


def use_mixed_precision(cfg: Config) -> None:
    """Set the config's optimizer wrapper to one of mixed precision.

    On a CPU it is `AutocastOptimWrapper`; elsewhere mmengine's ``AmpOptimWrapper`` with
    a dynamic loss scale, unless the config asks for another one.

    Raises:
        ValueError: If the config has several optimizers, or a wrapper of another kind.
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
