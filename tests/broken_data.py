"""Small data sets of mmdet and mmseg with something wrong in them."""

import io
import json
from collections.abc import Sequence
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
    """Return an image of any values."""
    values = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=shape)
    return values.astype(dtype)


def labels(height: int = 64, width: int = 64) -> np.ndarray:
    """Return a label map of all four classes, in stripes."""
    rows = (np.arange(height) * 4 // height).astype(np.uint8)
    return np.repeat(rows[:, None], width, axis=1)


def encoded(image: np.ndarray, suffix: str = '.png') -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def photo(orientation: int, height: int = 64, width: int = 64) -> bytes:
    """Return a JPEG that says how its pixels are turned."""
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
    """Write a data set, one image for each entry of `boxes`, and return its config.

    Args:
        root: The folder to make.
        boxes: For each image (x, y, width, height) of its boxes, all of one class.
        image: What all image files hold; no file for empty bytes of None kind.
        categories: Names of the annotation.
        suffix: Of the image files.
        changes: Entries of all annotations.
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
    """Build a data set as a runner of that scope does."""
    import mmseg.datasets  # noqa: F401
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build({**config, '_scope_': scope})
