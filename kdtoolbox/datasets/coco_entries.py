"""Check that the entries of a COCO annotation have the fields that mmdet reads."""

import math
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class _Absent:
    """Stands for the value of a key that an entry does not have."""


_ABSENT = _Absent()


class _Field(NamedTuple):
    description: str
    types: tuple[type, ...]
    is_valid: Callable[[Any], bool] | None = None


def _is_box(value: Sequence) -> bool:
    if len(value) != 4:
        return False
    x, y, width, height = value
    numbers = float, int
    return (
        type(x) in numbers
        and type(y) in numbers
        and type(width) in numbers
        and type(height) in numbers
    )


def _is_size(value: float) -> bool:
    return 0 < value < math.inf


_NAME = _Field('a text', (str,))
_NUMBER = _Field('a number', (int, float))
_ID = _Field('a number or a text', (int, float, str))
_SIZE = _Field('a number above 0', (int, float), _is_size)
_BOX = _Field('four numbers, [x, y, width, height]', (list, tuple), _is_box)
_FLAG = _Field('0 or 1', (int, float, bool, type(None), _Absent))
_REQUIRED_FLAG = _Field('0 or 1', (int, bool))
_OBJECT = _Field('an object', (dict,))
_LIST = _Field('a list', (list,))

_IMAGE = dict(id=_ID, file_name=_NAME, height=_SIZE, width=_SIZE)
_SEGMENT = dict(id=_ID, category_id=_ID, bbox=_BOX, area=_NUMBER, iscrowd=_FLAG)
_ANNOTATION = dict(**_SEGMENT, image_id=_ID, ignore=_FLAG)
_CATEGORY = dict(id=_ID, name=_NAME)
_THING_OR_STUFF = dict(**_CATEGORY, isthing=_REQUIRED_FLAG)
_PANOPTIC = dict(image_id=_ID, segments_info=_LIST)
_LISTS = ('images', 'annotations', 'categories')


def valid_entries(
    content: Any, panoptic: bool = False
) -> tuple[dict[str, list[dict]], list[str]]:
    """Return the entries that mmdet can read, and the faults of all others.

    Args:
        content: The parsed JSON file.
        panoptic: Whether the annotations list panoptic segments.

    Returns:
        The valid ``images``, ``annotations`` and ``categories``, and one text per
        fault. For panoptic data, ``annotations`` contains the segments. The dict is
        empty if the file lacks one of the three lists.

    Example:
        >>> content = dict(images=[], annotations=[], categories=[dict(id=1)])
        >>> valid_entries(content)[1]
        ["category 1 has no ['name']"]
    """
    faults = _list_faults(content)
    if faults:
        return {}, faults
    tables = dict(
        images=('image', _IMAGE),
        annotations=('annotation', _PANOPTIC if panoptic else _ANNOTATION),
        categories=('category', _THING_OR_STUFF if panoptic else _CATEGORY),
    )
    valid = {}
    for name, (kind, fields) in tables.items():
        valid[name], new_faults = _split_valid(content[name], kind, fields)
        faults += new_faults
    if panoptic:
        category_ids = {category['id'] for category in valid['categories']}
        valid['annotations'], new_faults = _valid_segments(
            valid['annotations'], category_ids
        )
        faults += new_faults
    return valid, faults


def _list_faults(content: Any) -> list[str]:
    """Return the faults of the three lists of a COCO file, without their entries."""
    if not isinstance(content, dict):
        names = ', '.join(f'`{name}`' for name in _LISTS)
        return [f'it holds {_shown(content)}, not an object with {names}']
    return [
        f'`{name}` is {_shown(content[name])}, not a list'
        if name in content
        else f'there is no `{name}`'
        for name in _LISTS
        if not isinstance(content.get(name), list)
    ]


def duplicates(
    valid: Mapping[str, list[dict]],
    classes: Sequence[str] | None = None,
    panoptic: bool = False,
) -> list[str]:
    """Return one text per id or category name that occurs more than once.

    mmdet silently keeps only one of the entries that share an id.

    Args:
        valid: The entries that `valid_entries` returns.
        classes: The classes of the data set. Categories outside these may share a
            name, since mmdet does not read them.
        panoptic: Whether the annotations are segments, which are numbered per image.

    Example:
        >>> duplicates(dict(images=[dict(id=7), dict(id=7)]))
        ['images id 7 twice']
    """
    faults = []
    for kind, entries in valid.items():
        ids = [entry['id'] for entry in entries]
        if len(set(ids)) < len(ids) and not (panoptic and kind == 'annotations'):
            faults += [f'{kind} id {i} twice' for i, n in Counter(ids).items() if n > 1]
    names = Counter(category['name'] for category in valid.get('categories', ()))
    for name, count in names.items():
        if count > 1 and (classes is None or name in classes):
            ids = [c['id'] for c in valid['categories'] if c['name'] == name]
            faults.append(f'categories {ids} are all named {name!r}')
    return faults


def _valid_segments(
    annotations: list[dict], category_ids: set
) -> tuple[list[dict], list[str]]:
    segments, faults = [], []
    for annotation in annotations:
        image = annotation['image_id']
        valid, new_faults = _split_valid(
            annotation['segments_info'], 'segment', _SEGMENT
        )
        # mmdet drops boxes of unknown categories but raises at such segments.
        new_faults += [
            f'segment {segment["id"]}: there is no category {segment["category_id"]!r}'
            for segment in valid
            if segment['category_id'] not in category_ids
        ]
        segments += [dict(segment, image_id=image) for segment in valid]
        faults += [f'image {image}: {fault}' for fault in new_faults]
    return segments, faults


def _split_valid(
    entries: list, kind: str, fields: Mapping[str, _Field]
) -> tuple[list[dict], list[str]]:
    """Return the valid entries of a list, and the faults of the others."""
    faults = [
        f'{kind} number {index + 1} is {_shown(entries[index])}, not an object'
        for index in _invalid_indices(entries, _OBJECT)
    ]
    objects = [e for e in entries if isinstance(e, dict)] if faults else entries
    keys = defaultdict(list)
    for key, field in fields.items():
        values = [entry.get(key, _ABSENT) for entry in objects]
        for index in _invalid_indices(values, field):
            # mmdet skips entries with `ignore` before it reads their box.
            skipped = 'ignore' in fields and objects[index].get('ignore')
            if not (skipped and key in ('bbox', 'area')):
                keys[index].append(key)
    for index in sorted(keys):
        invalid = {key: fields[key] for key in keys[index]}
        faults += _describe_faults(objects[index], kind, invalid)
    return [e for i, e in enumerate(objects) if i not in keys], faults


def _invalid_indices(values: list, field: _Field) -> list[int]:
    """Return the indices of the values that do not belong into a field.

    A file can have a million annotations, so the set of all types is checked first:
    that is far cheaper than a check of each value.
    """
    wrong_types = set(map(type, values)).difference(field.types)
    is_valid = field.is_valid
    if not wrong_types and (is_valid is None or all(map(is_valid, values))):
        return []
    return [
        index
        for index, value in enumerate(values)
        if type(value) in wrong_types or (is_valid is not None and not is_valid(value))
    ]


def _describe_faults(
    entry: dict, kind: str, invalid: Mapping[str, _Field]
) -> list[str]:
    has_id = 'id' in entry and type(entry['id']) in _ID.types
    name = f'{kind} {entry["id"] if has_id else _shown(entry)}'
    missing = [key for key in invalid if key not in entry]
    return [f'{name} has no {missing}'] * bool(missing) + [
        f'{name}: `{key}` is {_shown(entry[key])}, not {field.description}'
        for key, field in invalid.items()
        if key in entry
    ]


def _shown(value: Any) -> str:
    return 'null' if value is None else reprlib.repr(value)
