"""Say what is wrong with an annotation file, once something is."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS

from kdtoolbox.datasets.coco_entries import duplicates, sound_entries


class AnnotationError(ValueError):
    """An annotation file that is not to be trained on.

    Args:
        path: The file, as the data set names it.
        faults: What is wrong with it.
    """

    def __init__(self, path: str, faults: Sequence[str]) -> None:
        # Both are arguments, so that the error crosses from other processes.
        super().__init__(path, faults)
        self.path = path
        self.faults = faults

    def __str__(self) -> str:
        return (
            f'{self.path}: {first_of(self.faults)}. Correct the file; '
            '`tools/check_dataset.py CONFIG` lists all that is wrong with it'
        )


def explain_failure(config: Any, where: str, error: Exception) -> None:
    """Raise a clear error if the data explain why a data set could not be built.

    Args:
        config: The config of the data set, or of a wrapper.
        where: Its place in the config.
        error: What came of building it.

    Raises:
        ValueError: If a file is missing or damaged, or no image is left.
    """
    for place, leaf in leaf_configs(config, where):
        for key, path in local_paths(leaf):
            if not os.path.exists(path):
                raise ValueError(
                    f'{place}: {path} does not exist; correct `{key}` or `data_root`'
                ) from error
            if isinstance(error, AnnotationError) and error.path == path:
                raise ValueError(f'{place}: {error}') from error
            if path.endswith('.json'):
                faults = annotation_faults(read_json(path, place), leaf['type'])
                if faults:
                    told = AnnotationError(path, faults)
                    raise ValueError(f'{place}: {told}') from error
        if isinstance(error, ValueError) and _is_empty(leaf):
            raise ValueError(
                f'{place} is empty: its folders or its annotation have no image that '
                f'passes; correct `data_prefix`, `img_suffix`, `metainfo.classes` or '
                f'`filter_cfg={leaf.get("filter_cfg")}`'
            ) from error


def annotation_faults(
    content: Any, kind: Any, classes: Sequence[str] | None = None
) -> list[str]:
    """Return what keeps a COCO annotation from being read, or lets it be misread.

    Args:
        content: What the JSON file holds.
        kind: The class of the data set, or its name.
        classes: The classes of the data set, of which each may stand once.
    """
    panoptic = is_panoptic(kind)
    sound, faults = sound_entries(content, panoptic)
    return faults or duplicates(sound, classes, panoptic)


def is_panoptic(kind: Any) -> bool:
    """Tell whether a class of data sets, or its name, is one of segments."""
    return 'Panoptic' in getattr(kind, '__name__', str(kind))


def read_json(path: str, where: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except RecursionError as error:
        raise ValueError(
            f'{where}: the lists of {path} lie within each other too deep to be read; '
            'fetch or write it again'
        ) from error
    except ValueError as error:
        raise ValueError(
            f'{where}: {path} of {os.path.getsize(path)} bytes is no whole JSON file '
            f'({error}); it was cut off or damaged: fetch or write it again'
        ) from error


def missing_classes(dataset: Any) -> str:
    """Say which classes have no category in the annotation, and which are left over."""
    content = read_json(dataset.ann_file, 'ann_file')
    found = [c for c in content.get('categories', []) if isinstance(c, dict)]
    names = [c['name'] for c in found if isinstance(c.get('name'), str)]
    classes = dataset.metainfo['classes']
    told = {
        'without a category': [name for name in classes if name not in names],
        'categories without a class': [name for name in names if name not in classes],
        'named twice': [name for name, n in Counter(names).items() if n > 1],
    }
    return ''.join(f'; {kind}: {first_of(x)}' for kind, x in told.items() if x)


def first_of(names: Sequence[Any], count: int = 3) -> str:
    """Join the first of some names.

    Example:
        >>> first_of(['a', 'b', 'c'], count=2)
        'a, b, ...'
    """
    return ', '.join(map(str, [*names[:count], *['...'] * (len(names) > count)]))


def leaf_configs(config: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the configs of data sets within those of wrappers, with their place."""
    if not isinstance(config, Mapping):
        return
    for index, part in enumerate(config.get('datasets', ())):
        yield from leaf_configs(part, f'{where}.datasets[{index}]')
    if 'dataset' in config:
        yield from leaf_configs(config['dataset'], f'{where}.dataset')
    elif 'datasets' not in config:
        yield where, config


def local_paths(leaf: Mapping) -> Iterator[tuple[str, str]]:
    """Yield the keys of a data set's config that name local files, and these."""
    prefix = leaf.get('data_prefix') or {}
    named = dict(ann_file=leaf.get('ann_file'))
    named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
    for key, name in named.items():
        path = os.path.join(leaf.get('data_root') or '', name or '')
        if name and '://' not in path and not leaf.get('backend_args'):
            yield key, path


def _is_empty(leaf: Mapping) -> bool:
    # mmengine fails to pack an empty list, with an error about arrays.
    return not len(DATASETS.build({**leaf, 'serialize_data': False}))
