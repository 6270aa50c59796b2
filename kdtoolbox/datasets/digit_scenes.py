"""DigitScenes: handwritten digits on photographs, made in seconds without a download.

scikit-learn ships 1,797 scans of handwritten digits and two photographs. The scans are
rotated, scaled, coloured and blended onto random crops of the photographs. The same
scenes are written in COCO and in Cityscapes layout, so a config for the real data sets
differs only in ``data_root`` and the classes.
"""

import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from kdtoolbox.datasets.digit_drawing import (
    CLASSES,
    IGNORE,
    PRESETS,
    SPLITS,
    SceneStyle,
    render,
)


def _annotation(digit: dict) -> dict:
    # Imported here, since mmseg trainings import this package without pycocotools.
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(digit['mask']))
    return dict(
        category_id=digit['label'] + 1,
        bbox=[float(value) for value in coco_mask.toBbox(rle)],
        area=float(coco_mask.area(rle)),
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        iscrowd=0,
        scan=digit['scan'],
    )


def _write_scene(
    root: Path, seed: int, split: str, style: SceneStyle, tuning: bool, index: int
) -> list[dict]:
    """Write one scene's images in both layouts and return its COCO annotations."""
    scene = render(seed, split, index, style, tuning)
    stem = f'{split}/digits/digits_{index:06d}_000000'
    left = root / f'leftImg8bit/{stem}_leftImg8bit.png'
    fine = f'gtFine/{stem}_gtFine'
    cv2.imwrite(str(left), scene['image'][..., ::-1])
    os.link(left, root / f'{split}2017/{index:012d}.png')
    cv2.imwrite(str(root / f'{fine}_labelTrainIds.png'), scene['labels'])
    # As in Cityscapes, the raw id 0 means unlabelled.
    raw = np.where(scene['labels'] == IGNORE, 0, scene['labels'] + 1)
    cv2.imwrite(str(root / f'{fine}_labelIds.png'), raw.astype(np.uint8))
    return [_annotation(digit) for digit in scene['digits']]


def _coco(scenes: list[list[dict]], size: tuple[int, int]) -> dict:
    flat = [
        dict(annotation, image_id=image)
        for image, annotations in enumerate(scenes)
        for annotation in annotations
    ]
    return dict(
        images=[
            dict(id=i, file_name=f'{i:012d}.png', width=size[1], height=size[0])
            for i in range(len(scenes))
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        annotations=[dict(a, id=i + 1) for i, a in enumerate(flat)],
    )


def _write_split(
    root: Path,
    seed: int,
    split: str,
    style: SceneStyle,
    tuning: bool,
    length: int,
    workers: int,
) -> None:
    for folder in ('leftImg8bit', 'gtFine'):
        (root / folder / split / 'digits').mkdir(parents=True)
    (root / f'{split}2017').mkdir()
    (root / 'annotations').mkdir(exist_ok=True)
    write = partial(_write_scene, root, seed, split, style, tuning)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            scenes = list(pool.map(write, range(length), chunksize=32))
    else:
        scenes = [write(index) for index in range(length)]
    path = root / f'annotations/instances_{split}2017.json'
    path.write_text(json.dumps(_coco(scenes, style.size)))


def make_digit_scenes(
    root: str | Path,
    style: SceneStyle = PRESETS['det'],
    train: int = 2000,
    val: int = 500,
    seed: int = 0,
    workers: int | None = None,
    tuning: bool = False,
) -> bool:
    """Write the data set to the folder ``root`` in COCO and in Cityscapes layout.

    A failed call leaves no folder behind. An existing folder is kept if it was made
    with the same parameters.

    Args:
        root: Folder to make.
        style: Look of the scenes. ``PRESETS`` contains one for each task.
        train: Number of training scenes.
        val: Number of validation scenes. Their scans are by other writers than
            the training scans.
        seed: Random seed. The same seed gives the same bytes.
        workers: Number of processes. None uses all cores.
        tuning: Take the scans of both splits from the training writers, and of
            different ones. Weights that are chosen on such scenes have seen no scan of
            the validation scenes that a result is measured on.

    Returns:
        True if the data set was made, False if it existed.

    Raises:
        ValueError: If ``root`` exists and was made with other parameters or by another
            program, or if the digits do not fit into a scene.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / 'digits'
        >>> make_digit_scenes(folder, train=2, val=1, workers=1)
        True
        >>> sorted(path.name for path in folder.iterdir())
        ['annotations', 'digit_scenes.json', 'gtFine', 'leftImg8bit', \
'train2017', 'val2017']
    """
    if min(style.size) < 1:
        raise ValueError(f'size: expected height and width in pixels, got {style.size}')
    root = Path(root)
    recipe = dict(style=asdict(style), train=train, val=val, seed=seed, tuning=tuning)
    recipe = json.loads(json.dumps(recipe))
    if root.exists():
        _check_same_recipe(root, recipe)
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    partial_root = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        partial_root.chmod(0o755)
        for split, length in zip(SPLITS, (train, val), strict=True):
            processes = workers or os.cpu_count() or 1
            _write_split(partial_root, seed, split, style, tuning, length, processes)
        (partial_root / 'digit_scenes.json').write_text(json.dumps(recipe, indent=1))
        os.replace(partial_root, root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return True


def _check_same_recipe(root: Path, recipe: dict) -> None:
    path = root / 'digit_scenes.json'
    found = json.loads(path.read_text()) if path.exists() else None
    if found != recipe:
        raise ValueError(
            f'{root} exists with other content: expected DigitScenes made with '
            f'{recipe}, found {found}. Remove the folder or name another one.'
        )
