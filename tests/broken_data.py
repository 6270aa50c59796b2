"""Write small data sets for mmdet and mmseg, and put faults into them."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

BOX = (8, 8, 32, 32)
CLASSES = ('a', 'b', 'c')
SEG_CLASSES = ('a', 'b', 'c', 'd')
DET_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
MASK_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
SEG_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(128, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    """Return an image of random values."""
    values = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=shape)
    return values.astype(dtype)


def labels(height: int = 64, width: int = 64) -> np.ndarray:
    """Return a label map with one stripe for each of the four classes."""
    rows = (np.arange(height) * 4 // height).astype(np.uint8)
    return np.repeat(rows[:, None], width, axis=1)


def encoded(image: np.ndarray, suffix: str = '.png') -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def photo(orientation: int, height: int = 64, width: int = 64) -> bytes:
    """Return a JPEG file with an EXIF orientation."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(noise(height, width, 3)).save(buffer, 'JPEG', exif=exif)
    return buffer.getvalue()


def write_coco(
    root: Path,
    boxes: Sequence[Sequence[tuple]] = ((BOX,), (BOX,)),
    image: np.ndarray | bytes | None = None,
    categories: Sequence[str] = CLASSES,
    suffix: str = '.png',
    **changes: Any,
) -> dict:
    """Write a data set with one image per entry of `boxes`, and return its config.

    Args:
        root: The folder to make.
        boxes: For each image the (x, y, width, height) of its boxes, all of one class.
        image: The pixels or the bytes of all image files. None makes random pixels.
        categories: Names of the categories in the annotation.
        suffix: Suffix of the image files.
        changes: Fields that are set in each annotation.
    """
    (root / 'images').mkdir(parents=True)
    image = noise(64, 64, 3) if image is None else image
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (64, 64)
    content = image if isinstance(image, bytes) else encoded(image, suffix)
    images, annotations = [], []
    for index, some in enumerate(boxes):
        name = f'{index}{suffix}'
        (root / 'images' / name).write_bytes(content)
        images.append(dict(id=index, file_name=name, height=height, width=width))
        for box in some:
            entry = dict(id=len(annotations), image_id=index, bbox=box, category_id=2)
            entry |= dict(area=abs(box[2] * box[3]), iscrowd=0)
            annotations.append(entry | changes)
    names = [dict(id=i + 1, name=name) for i, name in enumerate(categories)]
    (root / 'ann.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=names))
    )
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='ann.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        pipeline=DET_PIPELINE,
    )


def edit_coco(config: dict, edit: Callable[[dict], Any]) -> None:
    """Change the annotation file of a data set from `write_coco`."""
    path = Path(config['data_root']) / 'ann.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def _again(kind: str, **changes: Any) -> Callable[[dict], Any]:
    return lambda content: content[kind].append(content[kind][0] | changes)


def _set(kind: str, **changes: Any) -> Callable[[dict], Any]:
    return lambda content: content[kind][1].update(changes)


def _entry(kind: str, value: Any) -> Callable[[dict], Any]:
    return lambda content: content[kind].insert(1, value)


def _list(kind: str, value: Any) -> Callable[[dict], Any]:
    return lambda content: content.update({kind: value})


# Edits that make an entry of `write_coco` occur twice, with the expected message.
REPEATED = {
    'image': (_again('images', file_name='1.png'), 'images id 0 twice'),
    'annotation': (_again('annotations', image_id=1), 'annotations id 0 twice'),
    'category id': (_again('categories', name='x'), 'categories id 1 twice'),
    # Another class loses its category, so the numbers of both stay equal.
    'category name': (
        lambda content: content['categories'][2].update(name='a'),
        "categories [1, 3] are all named 'a'",
    ),
}

# Edits that make an annotation of `write_coco` malformed, with the expected message.
_NO_BOX = 'not four numbers, [x, y, width, height]'
MALFORMED = {
    f'{kind}: {changes}': (_set(kind, **changes), expected)
    for kind, changes, expected in [
        ('images', dict(height=None), 'image 1: `height` is null, not a number'),
        ('images', dict(width='64'), "image 1: `width` is '64', not a number above 0"),
        ('images', dict(width=0), 'image 1: `width` is 0, not a number above 0'),
        ('images', dict(height=float('nan')), 'image 1: `height` is nan, not a'),
        ('images', dict(file_name=None), 'image 1: `file_name` is null, not a text'),
        ('images', dict(file_name=7), 'image 1: `file_name` is 7, not a text'),
        ('images', dict(id=None), 'image {'),
        ('images', dict(id=[1]), 'image {'),
        ('annotations', dict(id={}), 'annotation {'),
        ('annotations', dict(image_id=[]), 'annotation 1: `image_id` is [], not a'),
        ('annotations', dict(category_id=None), 'annotation 1: `category_id` is null'),
        ('annotations', dict(category_id={}), 'annotation 1: `category_id` is {}, not'),
        ('annotations', dict(area='9'), "annotation 1: `area` is '9', not a number"),
        ('annotations', dict(area=None), 'annotation 1: `area` is null, not a number'),
        (
            'annotations',
            dict(iscrowd='0'),
            "annotation 1: `iscrowd` is '0', not 0 or 1",
        ),
        ('annotations', dict(ignore=[]), 'annotation 1: `ignore` is [], not 0 or 1'),
        ('categories', dict(name=None), 'category 2: `name` is null, not a text'),
        ('categories', dict(name=[]), 'category 2: `name` is [], not a text'),
        ('categories', dict(id=[]), 'category {'),
    ]
}
MALFORMED |= {
    f'box {value!r}': (
        _set('annotations', bbox=value),
        f'annotation 1: `bbox` is {expected}, {_NO_BOX}',
    )
    for value, expected in [
        ([], '[]'),
        ([1, 2, 3], '[1, 2, 3]'),
        ([1, 2, 3, 4, 5], '[1, 2, 3, 4, 5]'),
        (['1', '2', '3', '4'], "['1', '2', '3', '4']"),
        ([1, 2, None, 4], '[1, 2, None, 4]'),
        ([1, 2, [3], 4], '[1, 2, [3], 4]'),
        ([1, 2, True, 4], '[1, 2, True, 4]'),
        ('1234', "'1234'"),
        (dict(x=1, y=2, w=3, h=4), "{'h': 4, 'w': 3, 'x': 1, 'y': 2}"),
        (None, 'null'),
        (7, '7'),
    ]
}
MALFORMED |= {
    f'{kind} {value!r}': (
        _entry(kind, value),
        f'{name} number 2 is {expected}, not an object',
    )
    for kind, name in [
        ('images', 'image'),
        ('annotations', 'annotation'),
        ('categories', 'category'),
    ]
    for value, expected in [(None, 'null'), (7, '7'), ('a', "'a'"), ([], '[]')]
}
MALFORMED |= {
    f'all {kind} {value!r}': (_list(kind, value), f'`{kind}` is {expected}, not a list')
    for kind in ('images', 'annotations', 'categories')
    for value, expected in [
        (None, 'null'),
        (dict(a=1), "{'a': 1}"),
        ('a', "'a'"),
        (7, '7'),
    ]
}
MALFORMED |= {
    f'no {key}': (
        lambda content, kind=kind, key=key: content[kind][1].pop(key),
        f"{name} has no ['{key}']",
    )
    for kind, name, keys in [
        ('images', 'image 1', ('file_name', 'height', 'width')),
        ('annotations', 'annotation 1', ('image_id', 'category_id', 'bbox', 'area')),
        ('categories', 'category 2', ('name',)),
    ]
    for key in keys
}


def write_seg(
    root: Path,
    image: np.ndarray | bytes | None = None,
    label: np.ndarray | bytes | None = None,
    count: int = 2,
) -> dict:
    """Write a data set of `count` equal images and return its config."""
    contents = dict(
        images=noise(64, 64, 3) if image is None else image,
        labels=labels() if label is None else label,
    )
    for folder, content in contents.items():
        (root / folder).mkdir(parents=True)
        raw = content if isinstance(content, bytes) else encoded(content)
        for index in range(count):
            (root / folder / f'{index}.png').write_bytes(raw)
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=SEG_CLASSES),
        pipeline=SEG_PIPELINE,
    )


def build_dataset(config: dict, scope: str) -> Any:
    """Build a data set as a runner with this default scope does."""
    import mmdet.datasets  # noqa: F401
    import mmseg.datasets  # noqa: F401
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build({**config, '_scope_': scope})
