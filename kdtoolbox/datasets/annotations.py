"""Explain what is wrong with an annotation file that a data set failed to read."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS

from kdtoolbox.datasets.coco_entries import duplicates, valid_entries


class AnnotationError(ValueError):
    """An annotation file is malformed, so that training on it would fail or be wrong.

    Args:
        path: The file, as the data set names it.
        faults: One text per fault of the file.
    """

    def __init__(self, path: str, faults: Sequence[str]) -> None:
        # An exception is pickled with its arguments, so both have to be among them.
        super().__init__(path, faults)
        self.path = path
        self.faults = faults

    def __str__(self) -> str:
        return (
            f'{self.path}: {join_first(self.faults)}. Correct the file; '
            '`tools/check_dataset.py CONFIG` lists all of its faults'
        )


def explain_failure(config: Any, where: str, error: Exception) -> None:
    """Raise a clear error if the files of a data set explain why its build failed.

    Args:
        config: The config of the data set, or of a wrapper.
        where: Its path in the config.
        error: The exception that the build raised.

    Raises:
        ValueError: If a file is missing or damaged, or no image is left.
    """
    for place, leaf in leaf_configs(config, where):
        for key, path in local_paths(leaf):
            _explain_by_file(leaf, place, key, path, error)
        if isinstance(error, ValueError) and _is_empty(leaf):
            raise ValueError(
                f'{place} is empty: no image of its folders or its annotation passes '
                'the filters; correct `data_prefix`, `img_suffix`, `metainfo.classes` '
                f'or `filter_cfg={leaf.get("filter_cfg")}`'
            ) from error


def _explain_by_file(
    leaf: Mapping, where: str, key: str, path: str, error: Exception
) -> None:
    """Raise a `ValueError` if the file or folder at `path` explains an error."""
    if not os.path.exists(path):
        raise ValueError(
            f'{where}: {path} does not exist; correct `{key}` or `data_root`'
        ) from error
    if isinstance(error, AnnotationError) and error.path == path:
        raise ValueError(f'{where}: {error}') from error
    if path.endswith('.json'):
        faults = annotation_faults(read_json(path, where), leaf['type'])
        if faults:
            raise ValueError(f'{where}: {AnnotationError(path, faults)}') from error


def annotation_faults(
    content: Any, kind: Any, classes: Sequence[str] | None = None
) -> list[str]:
    """Return the faults of a COCO annotation that mmdet fails at or misreads.

    Args:
        content: The parsed JSON file.
        kind: The class of the data set, or its name.
        classes: The classes of the data set. Only their categories have to be unique.
    """
    panoptic = is_panoptic(kind)
    valid, faults = valid_entries(content, panoptic)
    return faults or duplicates(valid, classes, panoptic)


def is_panoptic(kind: Any) -> bool:
    """Return whether a data set class, or its name, is one for panoptic data."""
    return 'Panoptic' in getattr(kind, '__name__', str(kind))


def read_json(path: str, where: str) -> Any:
    """Return the parsed content of a JSON file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except RecursionError as error:
        raise ValueError(
            f'{where}: the lists of {path} are nested too deep to be read; '
            'fetch or write it again'
        ) from error
    except ValueError as error:
        raise ValueError(
            f'{where}: {path} of {os.path.getsize(path)} bytes is no whole JSON file '
            f'({error}); it was cut off or damaged: fetch or write it again'
        ) from error


def missing_classes(dataset: Any) -> str:
    """Describe how the classes of a data set and the categories of its file differ."""
    content = read_json(dataset.ann_file, 'ann_file')
    categories = [c for c in content.get('categories', []) if isinstance(c, dict)]
    names = [c['name'] for c in categories if isinstance(c.get('name'), str)]
    classes = dataset.metainfo['classes']
    differences = {
        'without a category': [name for name in classes if name not in names],
        'categories without a class': [name for name in names if name not in classes],
        'named twice': [name for name, n in Counter(names).items() if n > 1],
    }
    return ''.join(f'; {kind}: {join_first(x)}' for kind, x in differences.items() if x)


def join_first(names: Sequence[Any], count: int = 3) -> str:
    """Join the first names of a sequence.

    Example:
        >>> join_first(['a', 'b', 'c'], count=2)
        'a, b, ...'
    """
    return ', '.join(map(str, [*names[:count], *['...'] * (len(names) > count)]))


def leaf_configs(config: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the configs of the data sets inside wrappers, with their config paths."""
    if not isinstance(config, Mapping):
        return
    for index, part in enumerate(config.get('datasets', ())):
        yield from leaf_configs(part, f'{where}.datasets[{index}]')
    if 'dataset' in config:
        yield from leaf_configs(config['dataset'], f'{where}.dataset')
    elif 'datasets' not in config:
        yield where, config


def local_paths(leaf: Mapping) -> Iterator[tuple[str, str]]:
    """Yield each key of a data set's config that names a local path, with the path."""
    prefix = leaf.get('data_prefix') or {}
    named = dict(ann_file=leaf.get('ann_file'))
    named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
    for key, name in named.items():
        path = os.path.join(leaf.get('data_root') or '', name or '')
        if name and '://' not in path and not leaf.get('backend_args'):
            yield key, path


def _is_empty(leaf: Mapping) -> bool:
    # With `serialize_data` mmengine raises an unrelated numpy error on an empty list.
    return not len(DATASETS.build({**leaf, 'serialize_data': False}))
