"""Read a whole data set once, as a training would, and list what is wrong with it."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from kdtoolbox.configuration import load_config
from kdtoolbox.datasets.annotations import (
    coco_faults,
    explain_failure,
    read_json,
)
from kdtoolbox.datasets.inspection import (
    check_dataset,
    is_local,
    leaves,
    transforms_of,
)
from kdtoolbox.datasets.reading import wrong_labels

Findings = dict[str, list[str]]
KINDS = dict(
    keys='the annotation lacks something',
    duplicates='two of one id in the annotation',
    classes='classes and categories differ',
    boxes='boxes that are dropped or damaged',
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Writes nothing; exits with 1 if anything is wrong.'
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
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    console = Console()
    cfg = load_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    where = f'{args.split}_dataloader.dataset'
    config = cfg[f'{args.split}_dataloader'].dataset
    try:
        dataset = DATASETS.build(config)
    except Exception as error:
        explain_failure(config, where, error)
        raise
    found: Findings = defaultdict(list)
    count = 0
    for place, leaf in leaves(dataset, where):
        count += len(leaf)
        for kind, text in inspect(leaf, place, args.workers, console):
            found[kind].append(text)
    if not count:
        raise ValueError(f'{where}: a {type(dataset).__name__} is not known here')
    report(found, count, console)
    return int(bool(found))


def inspect(
    dataset: BaseDataset, where: str, workers: int, console: Console
) -> Iterator[tuple[str, str]]:
    """Yield kind and text of all that is wrong with a data set without wrappers."""
    try:
        check_dataset(dataset, where)
    except ValueError as error:
        yield 'a training would refuse to start', str(error)
    if hasattr(dataset, 'cat_ids') and str(dataset.ann_file).endswith('.json'):
        content = read_json(dataset.ann_file, where)
        for key, faults in coco_faults(content, dataset.metainfo['classes']).items():
            yield from ((KINDS[key], f'{dataset.ann_file}: {x}') for x in faults)
    samples = Samples(dataset)
    loader = DataLoader(samples, batch_size=None, num_workers=workers)
    for faults in track(loader, where, len(samples), console=console):
        yield from faults


def report(found: Findings, count: int, console: Console) -> None:
    """Print what was found as a table."""
    if not found:
        console.print(f'{count} images read, nothing found')
        return
    table = Table('what', 'how many', 'such as')
    for kind, texts in found.items():
        first = [*texts[:3], *['...'] * (len(texts) > 3)]
        table.add_row(kind, str(len(texts)), '\n'.join(first))
    console.print(table)


class Samples(Dataset):
    """For each image what is wrong with it, read by the data set's own loaders."""

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset
        transforms = transforms_of(dataset)
        self.load = Compose([t for t in transforms if 'Load' in type(t).__name__])
        self.local = is_local(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[tuple[str, str]]:
        info = self.dataset.get_data_info(index)
        path = info.get('img_path') or f'image {index}'
        try:
            results = self.load(dict(info))
        except Exception as error:
            text = f'{path}: {type(error).__name__}: {error}'
            return [('cannot be read', ' '.join(text.split()))]
        found = [*self._image_faults(info, results), *self._label_faults(results)]
        return [(kind, f'{path}: {text}') for kind, text in found]

    def _image_faults(self, info: dict, results: dict) -> Iterator[tuple[str, str]]:
        size = tuple(results.get('ori_shape') or ())
        told = info.get('height'), info.get('width')
        if size and None not in told and size != told:
            yield 'of another size than the annotation says', f'{size}, not {told}'
        path = str(info.get('img_path'))
        if self.local and path.lower().endswith(('.jpg', '.jpeg')):
            try:
                # Some versions of the usual decoder paint grey what is missing.
                Image.open(path).load()
            except OSError as error:
                yield 'cut off', str(error)

    def _label_faults(self, results: dict) -> Iterator[tuple[str, str]]:
        labels = results.get('gt_seg_map')
        # mmdet's maps, of things and stuff, number other classes.
        if labels is None or 'reduce_zero_label' not in results:
            return
        size = tuple(results.get('ori_shape') or labels.shape)
        if labels.shape != size:
            yield 'label map of another size', f'{labels.shape}, not {size}'
        classes = self.dataset.metainfo.get('classes')
        if classes is not None:
            values = torch.from_numpy(labels.astype(np.int64))
            wrong = wrong_labels(values, len(classes))
            if wrong:
                yield 'labels without a class', f'{wrong[:5]} of {len(classes)} classes'
        if self.local and Image.open(results['seg_map_path']).mode.startswith('I'):
            largest = np.asarray(Image.open(results['seg_map_path'])).max()
            if largest > 255:
                yield 'labels of 16 bits, of which 8 are read', f'up to {largest}'


if __name__ == '__main__':
    sys.exit(main())
