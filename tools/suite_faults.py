"""Why a training would give no score; part of tools/run_benchmark.py."""

import math

from mmengine.config import Config


def fault_of(config: Config, images: int | None) -> str:
    """Return why a training or its test would give no score; empty if it gives one.

    Args:
        config: The config.
        images: Number of all training images, if it is known.

    Example:
        >>> fault_of(Config(dict(train_cfg=dict(max_iters=8.0))), None)
        'train_cfg: expected a whole number, got 8.0; set the option \
`train_cfg.max_iters=400`'
    """
    return (
        _fault_of_length(config)
        or _fault_of_images(config, images)
        or _fault_of_test(config)
    )


def _fault_of_length(config: Config) -> str:
    loop = config.get('train_cfg') or {}
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    if epochs and iterations:
        by_epoch = loop.get('by_epoch', 'Iter' not in str(loop.get('type')))
        own, other = ('epochs', 'iters') if by_epoch else ('iters', 'epochs')
        return (
            'train_cfg: expected one of max_iters and max_epochs, got '
            f'{iterations} and {epochs}; write '
            f'`train_cfg.max_{own}` in place of `train_cfg.max_{other}`'
        )
    if not (epochs or iterations):
        return (
            'train_cfg: expected max_iters or max_epochs, got none; set the option '
            '`train_cfg.max_iters=N`'
        )
    if type(epochs or iterations) is not int:
        return (
            f'train_cfg: expected a whole number, got {epochs or iterations!r}; set '
            f'the option `train_cfg.max_{"epochs" if epochs else "iters"}=400`'
        )
    if not loop.get(f'max_{checkpoint_unit(config)}s'):
        return (
            'the training counts one unit and its checkpoints the other; set the '
            f'option `default_hooks.checkpoint.by_epoch={bool(epochs)}`'
        )
    return ''


def _fault_of_images(config: Config, images: int | None) -> str:
    chosen = chosen_images(config)
    most = images or math.inf
    if chosen is None or (type(chosen) is int and 1 <= chosen <= most):
        return ''
    whole = f', of which there are {images}' if images else ''
    return (
        'train_dataloader.dataset.indices: expected the number of training '
        f'images{whole}, got {chosen!r}; set the option '
        '`train_dataloader.dataset.indices=250`'
    )


def _fault_of_test(config: Config) -> str:
    found = config.get('test_evaluator') or []
    evaluators = found if isinstance(found, list) else [found]
    if not evaluators:
        return 'test_evaluator: the config has none, so its test gives no score'
    if all(one.get('format_only') for one in evaluators):
        return 'the test writes files alone; set `test_evaluator.format_only=False`'
    return ''


def chosen_images(config: Config) -> int | None:
    """Return how many of the training images a config takes; None if all."""
    dataset = (config.get('train_dataloader') or {}).get('dataset') or {}
    indices = dataset.get('indices')
    if isinstance(indices, list | tuple):
        return len(indices)
    # mmengine takes the last images for a number below 0.
    return abs(indices) if type(indices) is int else indices


def checkpoint_unit(config: Config) -> str:
    """Return by what the checkpoints are counted, ``epoch`` or ``iter``."""
    saving = (config.get('default_hooks') or {}).get('checkpoint') or {}
    return 'epoch' if saving.get('by_epoch', True) else 'iter'
