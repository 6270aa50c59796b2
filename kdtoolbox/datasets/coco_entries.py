"""Which entries of a COCO annotation have what mmdet reads of each."""

import math
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class _Absent:
    """What an entry has under a key that it lacks."""


_ABSENT = _Absent()


class _Field(NamedTuple):
    told: str
    types: tuple[type, ...]
    fits: Callable[[Any], bool] | None = None


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
_TRUTH = _Field('0 or 1', (int, bool))
_OBJECT = _Field('an object', (dict,))
_LIST = _Field('a list', (list,))

_IMAGE = dict(id=_ID, file_name=_NAME, height=_SIZE, width=_SIZE)
_SEGMENT = dict(id=_ID, category_id=_ID, bbox=_BOX, area=_NUMBER, iscrowd=_FLAG)
_ANNOTATION = dict(**_SEGMENT, image_id=_ID, ignore=_FLAG)
_CATEGORY = dict(id=_ID, name=_NAME)
_THING_OR_STUFF = dict(**_CATEGORY, isthing=_TRUTH)
_PANOPTIC = dict(image_id=_ID, segments_info=_LIST)
_LISTS = ('images', 'annotations', 'categories')


def sound_entries(
    content: Any, panoptic: bool = False
) -> tuple[dict[str, list[dict]], list[str]]:
    """Return the entries that mmdet can read, and what is wrong with all others.

    Args:
        content: What the JSON file holds.
        panoptic: Whether the data set reads segments, which annotations then list.

    Returns:
        The sound ``images``, ``annotations`` and ``categories``, of which the second
        are the segments of panoptic data, and a text for each fault. Without one of
        the lists all three are empty.

    Example:
        >>> content = dict(images=[], annotations=[], categories=[dict(id=1)])
        >>> sound_entries(content)[1]
        ["category 1 has no ['name']"]
    """
    if not isinstance(content, dict):
        listed = ', '.join(f'`{name}`' for name in _LISTS)
        return {}, [f'it holds {_shown(content)}, not an object with {listed}']
    faults = [
        f'`{name}` is {_shown(content[name])}, not a list'
        if name in content
        else f'there is no `{name}`'
        for name in _LISTS
        if not isinstance(content.get(name), list)
    ]
    if faults:
        return {}, faults
    tables = dict(
        images=('image', _IMAGE),
        annotations=('annotation', _PANOPTIC if panoptic else _ANNOTATION),
        categories=('category', _THING_OR_STUFF if panoptic else _CATEGORY),
    )
    sound = {}
    for name, (kind, fields) in tables.items():
        sound[name], wrong = _sound(content[name], kind, fields)
        faults += wrong
    if panoptic:
        known = {category['id'] for category in sound['categories']}
        sound['annotations'], wrong = _segments(sound['annotations'], known)
        faults += wrong
    return sound, faults


def duplicates(
    sound: Mapping[str, list[dict]],
    classes: Sequence[str] | None = None,
    panoptic: bool = False,
) -> list[str]:
    """Return which ids stand twice, of which mmdet keeps one, and which names.

    Args:
        sound: The entries of `sound_entries`.
        classes: The classes of the data set. Other categories may share a name, since
            mmdet does not read them.
        panoptic: Whether the annotations are segments, numbered anew in each image.

    Example:
        >>> duplicates(dict(images=[dict(id=7), dict(id=7)]))
        ['images id 7 twice']
    """
    found = []
    for kind, entries in sound.items():
        ids = [entry['id'] for entry in entries]
        if len(set(ids)) < len(ids) and not (panoptic and kind == 'annotations'):
            found += [f'{kind} id {i} twice' for i, n in Counter(ids).items() if n > 1]
    names = Counter(category['name'] for category in sound.get('categories', ()))
    for name, count in names.items():
        if count > 1 and (classes is None or name in classes):
            ids = [c['id'] for c in sound['categories'] if c['name'] == name]
            found.append(f'categories {ids} are all named {name!r}')
    return found


def _segments(annotations: list[dict], known: set) -> tuple[list[dict], list[str]]:
    segments, faults = [], []
    for annotation in annotations:
        image = annotation['image_id']
        sound, wrong = _sound(annotation['segments_info'], 'segment', _SEGMENT)
        # Boxes of unknown categories are dropped; these stop mmdet.
        wrong += [
            f'segment {segment["id"]}: there is no category {segment["category_id"]!r}'
            for segment in sound
            if segment['category_id'] not in known
        ]
        segments += [dict(segment, image_id=image) for segment in sound]
        faults += [f'image {image}: {fault}' for fault in wrong]
    return segments, faults


def _sound(
    entries: list, kind: str, fields: Mapping[str, _Field]
) -> tuple[list[dict], list[str]]:
    """Return the sound entries of a list, and the faults of the others."""
    faults = [
        f'{kind} number {index + 1} is {_shown(entries[index])}, not an object'
        for index in _wrong(entries, _OBJECT)
    ]
    objects = [e for e in entries if isinstance(e, dict)] if faults else entries
    keys = defaultdict(list)
    for key, field in fields.items():
        for index in _wrong([entry.get(key, _ABSENT) for entry in objects], field):
            # mmdet passes over those that say `ignore` before it looks at the box.
            over = 'ignore' in fields and objects[index].get('ignore')
            if not (over and key in ('bbox', 'area')):
                keys[index].append(key)
    for index in sorted(keys):
        faults += _told(objects[index], kind, {key: fields[key] for key in keys[index]})
    return [e for i, e in enumerate(objects) if i not in keys], faults


def _wrong(values: list, field: _Field) -> list[int]:
    """Return the places of the values that are not of a field's types, or do not fit.

    Files have a million annotations: a set of types is far cheaper than a look at each.
    """
    odd = set(map(type, values)).difference(field.types)
    fits = field.fits
    if not odd and (fits is None or all(map(fits, values))):
        return []
    return [
        index
        for index, value in enumerate(values)
        if type(value) in odd or (fits is not None and not fits(value))
    ]


def _told(entry: dict, kind: str, wrong: Mapping[str, _Field]) -> list[str]:
    named = 'id' in entry and type(entry['id']) in _ID.types
    name = f'{kind} {entry["id"] if named else _shown(entry)}'
    lack = [key for key in wrong if key not in entry]
    return [f'{name} has no {lack}'] * bool(lack) + [
        f'{name}: `{key}` is {_shown(entry[key])}, not {field.told}'
        for key, field in wrong.items()
        if key in entry
    ]


def _shown(value: Any) -> str:
    return 'null' if value is None else reprlib.repr(value)
