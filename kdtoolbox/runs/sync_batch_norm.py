"""Batch norms over all processes, which torch has for GPUs alone."""

from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from torch import nn


def use_plain_batch_norm(model: nn.Module) -> int:
    """Turn the SyncBN layers inside a model into plain batch norms, and say so.

    Parameters and buffers stay the same tensors. A teacher is no child of its distiller
    and keeps its layers: in eval mode they normalise as plain ones, on any device.

    Returns:
        How many layers there were.

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
    """mmengine's runner, which also takes SyncBN to several processes on a CPU.

    For a single process mmengine itself replaces the layers.
    """

    def wrap_model(
        self, model_wrapper_cfg: ConfigDict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model; before it, DistributedDataParallel would refuse SyncBN."""
        if self.distributed and get_device() == 'cpu':
            use_plain_batch_norm(model)
        return super().wrap_model(model_wrapper_cfg, model)
