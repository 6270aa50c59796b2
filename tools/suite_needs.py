"""A suite's schedule, and what is missing for it; part of tools/run_benchmark.py."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from suite_digest import weights_of
from suite_faults import chosen_images
from suite_file import Suite
from suite_plan import Recipe

from kdtoolbox.datasets import PRESETS


def schedules_of(recipes: Mapping[str, Recipe], gpus: int) -> dict[str, list[str]]:
    """Return the rows by the schedule with which they train."""
    rows: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        if recipe.config is not None and not recipe.error:
            rows.setdefault(schedule_of(recipe.config, gpus), []).append(name)
    return rows


def schedule_of(config: Config, gpus: int) -> str:
    """Return batch, learning rate, length and images of a training in words.

    Example:
        >>> loader, optimizer = dict(batch_size=2), dict(type='SGD', lr=0.01)
        >>> config = Config(dict(train_dataloader=loader, optim_wrapper=dict(
        ...     optimizer=optimizer), train_cfg=dict(max_epochs=12)))
        >>> schedule_of(config, gpus=8)
        '16 images a step (8 GPUs with 2 each), SGD with learning rate 0.01, 12 epochs'
    """
    each, optimizer = config.train_dataloader.batch_size, config.optim_wrapper.optimizer
    loop, rate = config.train_cfg, optimizer.get('lr', 'its default')
    unit = 'epochs' if loop.get('max_epochs') else 'iters'
    length = f'{loop.get(f"max_{unit}")} {unit.replace("iters", "iterations")}'
    shares = f' ({gpus} GPUs with {each} each)' if gpus > 1 else ''
    batch = f'{gpus * each} images a step{shares}'
    chosen = chosen_images(config)
    images = '' if chosen is None else f', {chosen} of the training images'
    return f'{batch}, {optimizer.type} with learning rate {rate}, {length}{images}'


def needs_of(suite: Suite, recipes: Mapping[str, Recipe], local: bool) -> list[str]:
    """Return what the runs need and a plan does not.

    Args:
        suite: The suite.
        recipes: The configs of its rows.
        local: Whether the runs would start on this machine.
    """
    configs = [recipe.config for recipe in recipes.values() if recipe.config]
    named = dict.fromkeys(s for config in configs for s in weights_of(config))
    cache = Path(torch.hub.get_dir(), 'checkpoints')
    needs = [missing_data(suite), missing_place(suite, local)]
    needs += [wrong_batch(suite, config) for config in configs]
    needs += [recipe.missing for recipe in recipes.values()]
    needs += [f'weights, fetched if {cache} has none: {w}' for w in named if '://' in w]
    return [*dict.fromkeys(filter(None, needs))]


def missing_data(suite: Suite) -> str:
    """Return how to get the data of a suite; empty if they are here or get made."""
    data = suite.data
    if data is None or preset_of(data) or Path('data', data).is_dir():
        return ''
    folder = Path('data', data)
    return (
        f'{suite.path.name}: data: expected the folder {folder.resolve()}, and it does '
        f'not exist; link it: `ln -s /path/to/{data} {folder}`'
    )


def preset_of(data: str) -> str | None:
    """Return the preset of a folder of DigitScenes, which get made; else None.

    Example:
        >>> preset_of('digits_det_tuning'), preset_of('coco')
        ('det', None)
    """
    names = {f'digits_{preset}': preset for preset in PRESETS}
    return names.get(data.removesuffix('_tuning'))


def missing_place(suite: Suite, local: bool) -> str:
    """Return why the runs of a suite cannot start from here; empty if they can.

    Args:
        suite: The suite.
        local: Whether they start on this machine, and not by slurm.
    """
    if local:
        return missing_gpus(suite)
    if shutil.which('srun'):
        return ''
    return (
        '--launcher slurm: expected the command srun, and it is not found; call the '
        'tool on a machine that submits jobs, or leave out --launcher'
    )


def missing_gpus(suite: Suite) -> str:
    """Return why a suite for several GPUs cannot run here; empty if it can."""
    here = torch.cuda.device_count()
    if suite.gpus == 1 or here >= suite.gpus:
        return ''
    return (
        f'{suite.path.name}: gpus: each run takes {suite.gpus}, and this machine has '
        f'{here}; use `--launcher slurm`, or write `gpus = {max(here, 1)}` and raise '
        '`train_dataloader.batch_size` in `options`, so that a step has as many images'
    )


def wrong_batch(suite: Suite, config: Config) -> str:
    """Return that the learning rate is for another batch; empty if it is not known."""
    wanted = (config.get('auto_scale_lr') or {}).get('base_batch_size')
    batch = config.train_dataloader.batch_size * suite.gpus
    if wanted in (None, batch):
        return ''
    return (
        f'{suite.path.name}: gpus: the learning rate of these configs is for {wanted} '
        f'images a step, and a step has {batch}; change `gpus`, or the option '
        '`train_dataloader.batch_size`'
    )
