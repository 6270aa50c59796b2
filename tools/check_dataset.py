"""Read a whole data set once, as a training would, and list what is wrong with it."""

import argparse
import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader, Dataset

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
from kdtoolbox.datasets.loaders import lack_of
from kdtoolbox.datasets.reading import (
    cuts_labels,
    heed_heads,
    ignored_labels,
    is_local,
    listed,
    transforms_of,
    wrong_labels,
)
from kdtoolbox.datasets.stored_bits import cut_depth, cut_labels

Findings = dict[str, list[str]]
KINDS = dict(
    keys='the annotation lacks or garbles something',
    duplicates='two of one id or name in the annotation',
    classes='classes and categories differ',
    boxes='boxes that are dropped or damaged',
    masks='masks that are missing or dropped',
)
ORIENTATION = 0x0112


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
    heed_heads(ignored_by_heads(cfg))
    where = f'{args.split}_dataloader.dataset'
    config = cfg[f'{args.split}_dataloader'].dataset
    found: Findings = defaultdict(list)
    try:
        datasets = [*leaves(DATASETS.build(config), where)]
    except Exception as error:
        datasets = [*readable(config, where, found)]
        if not found:
            explain_failure(config, where, error)
            raise
    count = sum(len(leaf) for _, leaf in datasets)
    for place, leaf in datasets:
        for kind, text in inspect(leaf, place, args.workers, console):
            found[kind].append(text)
    if not count and not found:
        raise ValueError(f'{where}: a {config["type"]} is not known here')
    report(found, count, console)
    return int(bool(found))


def ignored_by_heads(cfg: Config) -> set[int] | None:
    """Return the labels that the decode heads of a config ignore, if it tells."""
    model = cfg.get('model') or {}
    student = model.get('student', model)
    if isinstance(student, str):
        student = load_config(student).model
    heads = student.get('decode_head') or []
    heads = heads if isinstance(heads, list) else [heads]
    labels = {head.get('ignore_index') for head in heads} - {None}
    return labels or None


def readable(
    config: ConfigDict, where: str, found: Findings
) -> Iterator[tuple[str, BaseDataset]]:
    """Yield the data sets that can be built; add to `found` what keeps others from it.

    Raises:
        ValueError: If that is something else than the entries of their annotations.
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
    """Yield kind and text of all that is wrong with a data set without wrappers."""
    try:
        check_dataset(dataset, where)
    except ValueError as error:
        yield 'a training would refuse to start', str(error)
    if hasattr(dataset, 'cat_ids') and str(dataset.ann_file).endswith('.json'):
        found = coco_faults(
            read_json(dataset.ann_file, where),
            dataset.metainfo['classes'],
            panoptic=is_panoptic(type(dataset)),
            loaders=transforms_of(dataset),
        )
        yield from named_faults(found, dataset.ann_file)
    samples = Samples(dataset)
    loader = DataLoader(samples, batch_size=None, num_workers=workers)
    for faults in track(loader, where, len(samples), console=console):
        yield from faults


def named_faults(faults: dict[str, list], path: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of the faults of an annotation file."""
    for key, texts in faults.items():
        yield from ((KINDS[key], f'{path}: {text}') for text in texts)


def report(found: Findings, count: int, console: Console) -> None:
    """Print what was found as a table."""
    if not found:
        console.print(f'{count} images read, nothing found')
        return
    table = Table('what', 'how many', 'such as')
    for kind, texts in found.items():
        first = [*texts[:3], *['...'] * (len(texts) > 3)]
        # Brackets would be taken for styles.
        table.add_row(kind, str(len(texts)), Text('\n'.join(first)))
    console.print(table)


class Samples(Dataset):
    """For each image what is wrong with it, read by the data set's own loaders."""

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset
        transforms = transforms_of(dataset)
        self.loaders = [t for t in transforms if 'Load' in type(t).__name__]
        self.local = is_local(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[tuple[str, str]]:
        info = self.dataset.get_data_info(index)
        path = info.get('img_path') or f'image {index}'
        found = []
        results: dict | None = dict(info)
        for loader in self.loaders:
            # Such a loader would fail, or load nothing, on each image anew.
            lack = lack_of([loader], info, self.dataset.test_mode)
            if lack:
                found.append(('without what the pipeline loads', lack))
                continue
            try:
                results = loader(results)
            except Exception as error:
                text = ' '.join(f'{type(error).__name__}: {error}'.split())
                found.append(('cannot be read', text))
                results = None
            if results is None:
                break
        if results is not None:
            found += [*self._image_faults(info, results), *self._label_faults(results)]
        elif not found:
            found.append(('cannot be read', '`ignore_empty` passes it over'))
        return [(kind, f'{path}: {text}') for kind, text in found]

    def _image_faults(self, info: dict, results: dict) -> Iterator[tuple[str, str]]:
        size = tuple(results.get('ori_shape') or ())
        told = info.get('height'), info.get('width')
        if size and None not in told and size != told:
            yield 'of another size than the annotation says', f'{size}, not {told}'
        for path in map(str, listed(info.get('img_path')) if self.local else ()):
            yield from self._orientation_faults(path, results, told)
            read = getattr(results.get('img'), 'dtype', None)
            if cut := cut_depth(path, read):
                yield 'of more bits than are read', cut
            if path.lower().endswith(('.jpg', '.jpeg')):
                try:
                    # Some versions of the usual decoder paint grey what is missing.
                    Image.open(path).load()
                except OSError as error:
                    yield 'cut off', str(error)

    def _orientation_faults(
        self, path: str, results: dict, told: tuple
    ) -> Iterator[tuple[str, str]]:
        """Yield how a photo that says it is turned is read, unless the sizes tell."""
        reader = next((t for t in self.loaders if hasattr(t, 'color_type')), None)
        try:
            image = Image.open(path)
        except OSError:
            return
        orientation = image.getexif().get(ORIENTATION, 1)
        if reader is None or orientation not in range(2, 9):
            return
        size = tuple(results['ori_shape'])
        labels = results.get('gt_seg_map')
        told = told if labels is None else labels.shape[:2]
        # From 5 on a side comes to lie: where both differ, equal sizes agree.
        if orientation >= 5 and size == told and size[0] != size[1]:
            return
        turns = reads_turned(image.format, reader.color_type, reader.imdecode_backend)
        yield (
            'turned by EXIF',
            f'has EXIF orientation {orientation} and is read '
            f'{"turned" if turns else "unturned"} by this pipeline: boxes and label '
            'maps must refer to that',
        )

    def _label_faults(self, results: dict) -> Iterator[tuple[str, str]]:
        labels = results.get('gt_seg_map')
        # mmdet's maps, of things and stuff, number other classes.
        if labels is None or 'reduce_zero_label' not in results:
            return
        size = tuple(results.get('ori_shape') or labels.shape)
        if labels.shape != size:
            yield 'label map of another size', f'{labels.shape}, not {size}'
        classes = self.dataset.metainfo.get('classes')
        ignored = ignored_labels(self.dataset)
        if classes is not None and ignored is not None:
            values = torch.from_numpy(labels.astype(np.int64))
            wrong = wrong_labels(values, len(classes), ignored)
            if wrong:
                text = f'{wrong[:5]} of {len(classes)} classes, ignored {[*ignored]}'
                yield 'labels without a class', text
        cuts = self.local and cuts_labels(self.dataset)
        if cuts and (cut := cut_labels(results['seg_map_path'])):
            yield 'labels that 8 bits do not hold', cut


@lru_cache
def reads_turned(kind: str, color_type: str, backend: str | None) -> bool:
    """Try whether mmcv turns an image as EXIF says; it depends on format and reader."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    # Phones write JPEGs that hold several images.
    kind = 'JPEG' if kind == 'MPO' else kind
    Image.new('RGB', (2, 1)).save(file, kind, exif=exif)
    shape = mmcv.imfrombytes(file.getvalue(), flag=color_type, backend=backend).shape
    return shape[0] > shape[1]


if __name__ == '__main__':
    sys.exit(main())
