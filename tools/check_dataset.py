"""Read a whole data set once, as a training does, and list its faults."""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader

from kdtoolbox.configuration import load_config
from kdtoolbox.datasets.annotations import (
    explain_failure,
    is_panoptic,
    leaf_configs,
    local_paths,
    read_json,
)
from kdtoolbox.datasets.coco_faults import coco_faults
from kdtoolbox.datasets.inspection import check_dataset, leaves
from kdtoolbox.datasets.label_maps import set_ignored_by_heads
from kdtoolbox.datasets.pipelines import transforms_of
from kdtoolbox.datasets.sample_faults import SampleFaults
from kdtoolbox.runs.brief_errors import add_traceback, brief_errors
from kdtoolbox.runs.command_line import merge_options

Findings = dict[str, list[str]]
KINDS = dict(
    keys='missing or malformed entries of the annotation',
    duplicates='two of one id or name in the annotation',
    classes='classes and categories differ',
    boxes='boxes that are dropped or damaged',
    masks='masks that are missing or dropped',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Writes no file; exits with 1 if it finds a fault.'
    )
    parser.add_argument('config', help='config file or package::path')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--workers', type=int, default=4, help='reading processes')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override config entries, as in train_dataloader.dataset.data_root=data',
    )
    add_traceback(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    with brief_errors(args.traceback):
        return check(args)


def check(args: argparse.Namespace) -> int:
    """Print the faults of a data set; return 1 if there are some."""
    console = Console()
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options or {})
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    set_ignored_by_heads(ignored_by_heads(cfg))
    where = f'{args.split}_dataloader.dataset'
    config = cfg[f'{args.split}_dataloader'].dataset
    found: Findings = defaultdict(list)
    try:
        datasets = [*leaves(DATASETS.build(config), where)]
    except Exception as error:
        datasets = [*buildable(config, where, found)]
        if not found:
            explain_failure(config, where, error)
            raise
    count = sum(len(leaf) for _, leaf in datasets)
    for place, leaf in datasets:
        for kind, text in inspect(leaf, place, args.workers, console):
            found[kind].append(text)
    if not count and not found:
        raise ValueError(f'{where}: cannot check a data set of type {config["type"]}')
    report(found, count, console)
    return int(bool(found))


def ignored_by_heads(cfg: Config) -> set[int] | None:
    """Return the labels that the decode heads of a config ignore, or None."""
    model = cfg.get('model') or {}
    student = model.get('student', model)
    if isinstance(student, str):
        student = load_config(student).model
    heads = student.get('decode_head') or []
    heads = heads if isinstance(heads, list) else [heads]
    labels = {head.get('ignore_index') for head in heads} - {None}
    return labels or None


def buildable(
    config: ConfigDict, where: str, found: Findings
) -> Iterator[tuple[str, BaseDataset]]:
    """Yield the data sets that can be built, and add the faults of others to `found`.

    Raises:
        ValueError: If the build of a data set fails for another reason than malformed
            entries of its annotation.
    """
    for place, leaf in leaf_configs(config, where):
        try:
            yield place, DATASETS.build(leaf)
        except Exception as error:
            path = dict(local_paths(leaf)).get('ann_file', '')
            faults: dict[str, list] = {}
            if path.endswith('.json') and os.path.exists(path):
                panoptic = is_panoptic(leaf['type'])
                faults = coco_faults(read_json(path, place), panoptic=panoptic)
            if not any(faults.get(kind) for kind in ('keys', 'duplicates')):
                explain_failure(leaf, place, error)
                raise
            for kind, text in named_faults(faults, path):
                found[kind].append(text)


def inspect(
    dataset: BaseDataset, where: str, workers: int, console: Console
) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each fault of a data set without wrappers."""
    try:
        check_dataset(dataset, where)
    except ValueError as error:
        yield 'a training would not start', str(error)
    if hasattr(dataset, 'cat_ids') and str(dataset.ann_file).endswith('.json'):
        found = coco_faults(
            read_json(dataset.ann_file, where),
            dataset.metainfo['classes'],
            panoptic=is_panoptic(type(dataset)),
            loaders=transforms_of(dataset),
        )
        yield from named_faults(found, dataset.ann_file)
    samples = SampleFaults(dataset)
    loader = DataLoader(samples, batch_size=None, num_workers=workers)
    for faults in track(loader, where, len(samples), console=console):
        yield from faults


def named_faults(faults: dict[str, list], path: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each fault of an annotation file."""
    for key, texts in faults.items():
        yield from ((KINDS[key], f'{path}: {text}') for text in texts)


def report(found: Findings, count: int, console: Console) -> None:
    """Print the faults as a table."""
    if not found:
        console.print(f'{count} images read, nothing found')
        return
    table = Table('fault', 'count', 'examples')
    for kind, texts in found.items():
        first = [*texts[:3], *['...'] * (len(texts) > 3)]
        # As a plain string, rich would read brackets as styles.
        table.add_row(kind, str(len(texts)), Text('\n'.join(first)))
    console.print(table)


if __name__ == '__main__':
    sys.exit(main())
