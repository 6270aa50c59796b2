"""Read a few batches of the data sets of a config, the same ones in each call."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Subset

from kdtoolbox.datasets.annotations import explain_failure
from kdtoolbox.datasets.start_checks import checked_annotations
from kdtoolbox.diagnosis.silence import quiet

_WORKER_KEYS = ('persistent_workers', 'prefetch_factor', 'timeout')


def some_train_batches(
    loader: Mapping[str, Any], count: int, seed: int
) -> tuple[list[Any], BaseDataset]:
    """Return up to ``count`` batches of the training data, and the data set.

    Args:
        loader: ``train_dataloader`` of a config. A smaller data set than one batch
            gives one smaller batch.
        count: Number of batches.
        seed: Seed of the sampler.
    """
    config = _in_this_process(loader)
    dataset = config['dataset'] = _built(config, 'train_dataloader.dataset')
    size = config.get('batch_size')
    if size is not None and 'batch_sampler' not in config:
        config['batch_size'] = min(size, len(dataset))
    batches = islice(Runner.build_dataloader(config, seed=seed), count)
    return [*batches], dataset


def some_val_batches(
    loader: Mapping[str, Any] | None, images: int, seed: int
) -> tuple[list[Any], Mapping[str, Any]]:
    """Return evenly spaced images of the validation data, and its metainfo.

    Neighbours in a data set are often alike, such as frames of one city.

    Args:
        loader: ``val_dataloader`` of a config, or None.
        images: Number of images; fewer if the data set is smaller.
        seed: Seed of the sampler.
    """
    if loader is None:
        return [], {}
    config = _in_this_process(loader)
    dataset = _built(config, 'val_dataloader.dataset')
    step = max(len(dataset) / images, 1.0)
    chosen = [int(step * i) for i in range(min(images, len(dataset)))]
    config['dataset'] = Subset(dataset, chosen)
    config['sampler'] = dict(type='DefaultSampler', shuffle=False)
    config.pop('batch_sampler', None)
    config.setdefault('batch_size', 1)
    return [*Runner.build_dataloader(config, seed=seed)], dataset.metainfo


def _built(config: Mapping[str, Any], where: str) -> Any:
    with quiet(), checked_annotations():
        try:
            dataset = DATASETS.build(config['dataset'])
        except Exception as error:
            explain_failure(config['dataset'], where, error)
            raise
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


def _in_this_process(loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a loader that starts no processes."""
    config = {k: v for k, v in loader.items() if k not in _WORKER_KEYS}
    return config | dict(num_workers=0)
