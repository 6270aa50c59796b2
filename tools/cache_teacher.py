"""Compute the records of cached teachers before a training reads them.

Reads the training images as tools/train.py does, once for each of the `views` of the
cache, and runs the teachers alone. What is there already is not computed again, so a
fill that was interrupted goes on with the same command.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.prompt import Confirm
from rich.table import Table
from torch.utils.data import DataLoader

from kdtoolbox.checkpoints.reading import use_safe_loaders
from kdtoolbox.datasets.head_labels import ignored_by_all
from kdtoolbox.datasets.label_maps import set_ignored_by_heads
from kdtoolbox.datasets.start_checks import checked_annotations
from kdtoolbox.distillers import Distiller
from kdtoolbox.inspection.recipe_checks import check_recipe
from kdtoolbox.runs.brief_errors import STATUS, all_faults, brief_errors
from kdtoolbox.runs.cache_filling import (
    Plan,
    batches,
    plans,
    preprocessed,
    recorders_of,
    share_of_hits,
    steps_of,
)
from kdtoolbox.runs.cached_views import cached_views, seed_samples
from kdtoolbox.runs.command_line import config_parser, read_config
from kdtoolbox.runs.distillation import build_distiller
from kdtoolbox.runs.mixed_precision import use_mixed_precision

Prepared = tuple[Distiller, DataLoader, AbstractContextManager]
"""The model, the training data, and a context in which a step would compute."""


def parse_args() -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument('--yes', action='store_true', help='start without asking')
    parser.add_argument(
        '--amp', action='store_true', help='for a training with --amp, which has others'
    )
    args = parser.parse_args()
    if not args.yes and not sys.stdin.isatty():
        parser.error('nobody can be asked here; add --yes to start without asking')
    return args


def prepare(args: argparse.Namespace) -> Prepared:
    use_safe_loaders()
    cfg = read_config(args.config, args.cfg_options)
    if args.amp:
        use_mixed_precision(cfg)
    with all_faults(cfg):
        check_recipe(cfg)
        if cached_views(cfg) is None:
            raise ValueError(
                f'{args.config}: no teacher has a cache; add '
                '`--cfg-options model.teacher.cache.path=caches/name '
                'model.teacher.cache.views=4`'
            )
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        model = build_distiller(cfg, cached=True).to(get_device())
    if not recorders_of(model):
        raise ValueError('model.losses: no loss reads a record of a cached teacher')
    set_ignored_by_heads(ignored_by_all(model))
    seed_samples(cfg)
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    set_random_seed(seed)
    with checked_annotations():
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
    return model, loader, computing(cfg, model)


def computing(cfg: Config, model: Distiller) -> AbstractContextManager:
    """Return the context in which a training computes: that of mixed precision."""
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        return nullcontext()
    return build_optim_wrapper(model, wrapper).optim_context(model)


def table_of(plan: Plan, views: int) -> Table:
    table = Table(title=plan.where, show_header=False)
    rows = {
        'folder': str(plan.folder),
        'an image': decimal(plan.bytes_each),
        'images x views': f'{plan.images // views:,} x {views}',
        'total': decimal(plan.total),
        'there already': f'{plan.stored:,} entries',
        'free on the disk': decimal(plan.free),
        'computing an image': f'{1000 * plan.compute:.1f} ms',
        'reading an image': f'{1000 * plan.read:.1f} ms',
    }
    for row in rows.items():
        table.add_row(*row)
    return table


def show(planned: list[Plan], share: float, views: int, console: Console) -> None:
    for plan in planned:
        console.print(table_of(plan, views))
        if plan.read >= plan.compute:
            console.print(
                f'{plan.where}: reading takes longer than computing, so this cache '
                'will not pay. Record smaller maps, use a faster disk, or remove it.'
            )
    if share < 1:
        console.print(
            f'{share:.0%} of the images are the same among other neighbours: their '
            'padding depends on the batch, or their augmentation does not repeat. The '
            'others are computed again when the order changes; see docs/caching.md.'
        )


def fill(prepared: Prepared, views: int, console: Console) -> None:
    model, loader, context = prepared
    total = steps_of(loader.dataset, views)
    columns = [TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()]
    with context, Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task('images', total=total)
        for batch in batches(loader, views):
            inputs, samples = preprocessed(model, batch)
            for teacher, recorders in recorders_of(model):
                teacher.observe(recorders, inputs, samples)
            bar.advance(task, len(inputs))
    for teacher, _ in recorders_of(model):
        cache = teacher.cache
        console.print(
            f'{cache.where}: {cache.computed} computed, {cache.read} were there'
        )


def main() -> int:
    args = parse_args()
    console = Console()
    with brief_errors(args.traceback):
        prepared = prepare(args)
        model, loader, _ = prepared
        views = recorders_of(model)[0][0].cache.views
        planned = [*plans(model, loader)]
        show(planned, share_of_hits(model, loader), views, console)
        for plan in planned:
            plan.check()
        if not args.yes and not Confirm.ask('Fill the cache?', console=console):
            return 0
        try:
            fill(prepared, views, console)
        except OSError as error:
            print(error, file=sys.stderr)
            return STATUS
    return 0


if __name__ == '__main__':
    sys.exit(main())
