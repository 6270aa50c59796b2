"""Replace SyncBN on CPUs, where torch does not support it."""

from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from torch import nn


def use_plain_batch_norm(model: nn.Module) -> int:
    """Replace the SyncBN layers of a model by plain batch norms and log it.

    Parameters and buffers stay the same tensors. The teacher is not a child of the
    distiller and keeps its SyncBN layers, which work on any device in eval mode.

    Returns:
        The number of replaced layers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
        >>> use_plain_batch_norm(model)
        1
        >>> isinstance(model[1], nn.SyncBatchNorm)
        False
    """
    from mmcv.ops import SyncBatchNorm

    kinds = (nn.SyncBatchNorm, SyncBatchNorm)
    count = sum(isinstance(layer, kinds) for layer in model.modules())
    if count:
        revert_sync_batchnorm(model)
        print_log(
            f'SyncBN needs GPUs: {count} layers became plain batch norms; in training '
            f'each process, 1 of {get_world_size()}, normalises over its own images',
            logger='current',
        )
    return count


class PortableRunner(Runner):
    """A Runner that trains models with SyncBN in several processes on a CPU.

    For a single process mmengine itself replaces the layers.
    """

    def wrap_model(
        self, model_wrapper_cfg: ConfigDict | None, model: nn.Module
    ) -> nn.Module:
        """Replace SyncBN, which DistributedDataParallel refuses on a CPU, and wrap."""
        if self.distributed and get_device() == 'cpu':
            use_plain_batch_norm(model)
        return super().wrap_model(model_wrapper_cfg, model)
