"""Four training and two validation images as COCO, Cityscapes and ADE20K have them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 128)
"""Height and width in pixels."""
SPLITS = dict(train=range(4), val=range(10, 12))
"""The seeds of the images of each split."""


def make_layouts(root: Path) -> None:
    """Write the data sets, and a plain folder ``data/images``, below a folder."""
    make_coco(root / 'data/coco')
    make_cityscapes(root / 'data/cityscapes')
    make_ade(root / 'data/ade/ADEChallengeData2016')
    make_images(root / 'data/images')


def make_images(root: Path) -> None:
    """Write a plain folder of images."""
    root.mkdir(parents=True)
    for seed in range(4):
        _picture(seed).save(root / f'{seed}.jpg')


def _picture(seed: int, size: Sequence[int] = SIZE) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def _labels(seed: int, classes: int, ignored: int) -> Image.Image:
    """Return blocks of one label and blocks of noise, a corner of them ignored.

    Some losses count only the pixels that the teacher classifies correctly. Noise has
    every class, so a teacher with random weights is correct somewhere.
    """
    rng = np.random.default_rng(seed)
    rows, columns = SIZE[0] // 16, SIZE[1] // 16
    blocks = rng.integers(0, classes, (rows, columns), dtype=np.uint8)
    noise = rng.integers(0, classes, SIZE, dtype=np.uint8)
    noisy = (np.arange(rows)[:, None] + np.arange(columns)) % 2 == 1
    labels = np.where(_enlarged(noisy), noise, _enlarged(blocks))
    labels[:32, :32] = ignored
    return Image.fromarray(labels)


def _enlarged(blocks: np.ndarray) -> np.ndarray:
    return blocks.repeat(16, 0).repeat(16, 1)


def make_coco(root: Path) -> None:
    """Write two splits; the last image of each has no box."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    (root / 'annotations').mkdir(parents=True)
    for split, seeds in ((f'{name}2017', seeds) for name, seeds in SPLITS.items()):
        (root / split).mkdir()
        images, annotations = [], []
        for index, seed in enumerate(seeds):
            name = f'{seed:012}.jpg'
            _picture(seed).save(root / split / name)
            height, width = SIZE
            images.append(dict(id=index, file_name=name, height=height, width=width))
            for part in range(2 if seed != seeds[-1] else 0):
                annotations.append(_annotation(len(annotations), index, part))
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / f'annotations/instances_{split}.json'
        path.write_text(json.dumps(content))


def _annotation(number: int, image: int, part: int) -> dict:
    x, y, w, h = 8 + 40 * part, 8 + 20 * image, 60, 36
    return dict(
        id=number,
        image_id=image,
        category_id=1 + number * 11 % 80,
        bbox=[x, y, w, h],
        area=w * h,
        iscrowd=0,
        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
    )


def make_cityscapes(root: Path) -> None:
    """Write two splits with train ids, 255 for pixels of no class."""
    for split, seeds in SPLITS.items():
        for kind in ('leftImg8bit', 'gtFine'):
            (root / kind / split / 'ulm').mkdir(parents=True)
        for seed in seeds:
            stem = f'{split}/ulm/ulm_{seed:06}_000019'
            _picture(seed).save(root / f'leftImg8bit/{stem}_leftImg8bit.png')
            labels = _labels(seed, classes=19, ignored=255)
            labels.save(root / f'gtFine/{stem}_gtFine_labelTrainIds.png')


def make_ade(root: Path) -> None:
    """Write two splits with classes from 1, 0 for pixels of no class."""
    for split, seeds in zip(('training', 'validation'), SPLITS.values(), strict=True):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for seed in seeds:
            name = f'{split}/ADE_{seed:08}'
            _picture(seed).save(root / f'images/{name}.jpg')
            labels = _labels(seed, classes=151, ignored=0)
            labels.save(root / f'annotations/{name}.png')
