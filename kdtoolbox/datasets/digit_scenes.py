"""DigitScenes: handwritten digits on photographs, made in seconds, without a download.

scikit-learn ships 1,797 scans of handwritten digits and two photographs. Scans are
rotated, scaled, coloured and blended onto random crops of the photographs. The same
scenes are written in COCO and in Cityscapes layout, so that moving to the real data
sets is a change of ``data_root`` and classes.
"""

import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

CLASSES = tuple('0123456789')
BACKGROUND = len(CLASSES)
IGNORE = 255
SCENE_SIZE = 128
# The scans come sorted by writer, so that a split by index keeps the writers apart.
TRAIN_SCANS = 1437
SPLITS = ('train', 'val')


@dataclass(frozen=True)
class SceneStyle:
    """What a scene looks like; ranges are inclusive at both ends.

    Attributes:
        digit_size: Side of a digit's scan in pixels.
        count: Digits in a scene.
        rotation: Largest rotation in degrees, either way.
        contrast: Least distance of a digit's grey value from the mean of the pixels
            below it, of 255.
        opacity: Share of a digit's colour in the blend.
        noise: Standard deviation of the Gaussian noise in grey values.
    """

    digit_size: tuple[int, int] = (16, 48)
    count: tuple[int, int] = (2, 6)
    rotation: float = 20.0
    contrast: float = 50.0
    opacity: tuple[float, float] = (0.75, 1.0)
    noise: float = 8.0


PRESETS = {
    'det': SceneStyle(),
    # A pixel classifier needs larger digits than a detector to learn in minutes.
    'seg': SceneStyle(digit_size=(32, 72), count=(2, 4)),
}


@lru_cache(maxsize=1)
def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    scans = (digits.images / 16.0).astype(np.float32)
    return scans, digits.target, load_sample_images().images


def _background(rng: np.random.Generator, photos: list[np.ndarray]) -> np.ndarray:
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(SCENE_SIZE, 2 * SCENE_SIZE + 1))
    top = rng.integers(photo.shape[0] - side + 1)
    left = rng.integers(photo.shape[1] - side + 1)
    crop = photo[top : top + side, left : left + side]
    crop = cv2.resize(crop, (SCENE_SIZE, SCENE_SIZE), interpolation=cv2.INTER_AREA)
    return crop.astype(np.float32)


def _digit_alpha(
    rng: np.random.Generator, scan: np.ndarray, style: SceneStyle
) -> np.ndarray:
    side = int(rng.integers(style.digit_size[0], style.digit_size[1] + 1))
    angle = float(rng.uniform(-style.rotation, style.rotation))
    scale = side / scan.shape[0]
    radians = np.deg2rad(abs(angle))
    canvas = int(np.ceil(side * (np.cos(radians) + np.sin(radians))))
    centre = (scan.shape[1] - 1) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D((centre, centre), angle, scale), float)
    matrix[:, 2] += (canvas - 1) / 2 - centre
    alpha = cv2.warpAffine(scan, matrix, (canvas, canvas), flags=cv2.INTER_CUBIC)
    alpha = np.clip(alpha, 0.0, 1.0)
    rows, columns = np.nonzero(alpha > 0.02)
    return alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _colour(rng: np.random.Generator, below: np.ndarray, contrast: float) -> np.ndarray:
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - below.mean()) >= contrast:
            return colour


def _place(
    rng: np.random.Generator, alpha: np.ndarray, labels: np.ndarray
) -> tuple[slice, slice] | None:
    height, width = alpha.shape
    if height > SCENE_SIZE or width > SCENE_SIZE:
        return None
    for _ in range(20):
        top = rng.integers(SCENE_SIZE - height + 1)
        left = rng.integers(SCENE_SIZE - width + 1)
        window = slice(top, top + height), slice(left, left + width)
        if not (labels[window] != BACKGROUND)[alpha > 0.1].any():
            return window
    return None


def _draw_digit(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    scan: int,
    style: SceneStyle,
) -> dict | None:
    """Draw a digit into ``image`` and ``labels``; None if there is no room."""
    scans, targets, _ = _sources()
    alpha = _digit_alpha(rng, scans[scan], style)
    window = _place(rng, alpha, labels)
    if window is None:
        return None
    colour = _colour(rng, image[window], style.contrast)
    blend = alpha[..., None] * rng.uniform(*style.opacity)
    image[window] += blend * (colour - image[window])
    mask = np.zeros_like(labels)
    mask[window] = alpha > 0.4
    border = cv2.dilate(mask, np.ones((3, 3), np.uint8)) - mask
    labels[(border == 1) & (labels == BACKGROUND)] = IGNORE
    labels[mask == 1] = targets[scan]
    return dict(scan=scan, label=int(targets[scan]), mask=mask)


def _render(seed: int, split: str, index: int, style: SceneStyle) -> dict:
    """Return image (RGB), label map and digits of one scene."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scans, _, photos = _sources()
    pool = (0, TRAIN_SCANS) if split == 'train' else (TRAIN_SCANS, len(scans))
    for _ in range(50):
        image = _background(rng, photos)
        labels = np.full((SCENE_SIZE, SCENE_SIZE), BACKGROUND, np.uint8)
        wanted = rng.integers(style.count[0], style.count[1] + 1)
        draws = (
            _draw_digit(rng, image, labels, int(rng.integers(*pool)), style)
            for _ in range(wanted)
        )
        digits = [digit for digit in draws if digit is not None]
        if len(digits) >= style.count[0]:
            break
    else:
        raise ValueError(
            f'{style.count[0]} digits of {style.digit_size} pixels find no room in a '
            f'scene of {SCENE_SIZE} pixels; lower `digit_size` or `count`.'
        )
    image = image + rng.normal(0, style.noise, image.shape)
    return dict(
        image=np.clip(image, 0, 255).astype(np.uint8), labels=labels, digits=digits
    )


def _annotation(digit: dict) -> dict:
    # Not on top: a training of mmseg imports the package's samplers without it.
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
    root: Path, seed: int, split: str, style: SceneStyle, index: int
) -> list[dict]:
    """Write one scene's images in both layouts and return its COCO annotations."""
    scene = _render(seed, split, index, style)
    stem = f'{split}/digits/digits_{index:06d}_000000'
    left = root / f'leftImg8bit/{stem}_leftImg8bit.png'
    fine = f'gtFine/{stem}_gtFine'
    cv2.imwrite(str(left), scene['image'][..., ::-1])
    os.link(left, root / f'{split}2017/{index:012d}.png')
    cv2.imwrite(str(root / f'{fine}_labelTrainIds.png'), scene['labels'])
    # As in Cityscapes, raw ids start at 0 = unlabelled.
    raw = np.where(scene['labels'] == IGNORE, 0, scene['labels'] + 1)
    cv2.imwrite(str(root / f'{fine}_labelIds.png'), raw.astype(np.uint8))
    return [_annotation(digit) for digit in scene['digits']]


def _coco(scenes: list[list[dict]]) -> dict:
    flat = [
        dict(annotation, image_id=image)
        for image, annotations in enumerate(scenes)
        for annotation in annotations
    ]
    return dict(
        images=[
            dict(id=i, file_name=f'{i:012d}.png', width=SCENE_SIZE, height=SCENE_SIZE)
            for i in range(len(scenes))
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        annotations=[dict(a, id=i + 1) for i, a in enumerate(flat)],
    )


def _write_split(
    root: Path, seed: int, split: str, style: SceneStyle, length: int, workers: int
) -> None:
    for folder in ('leftImg8bit', 'gtFine'):
        (root / folder / split / 'digits').mkdir(parents=True)
    (root / f'{split}2017').mkdir()
    (root / 'annotations').mkdir(exist_ok=True)
    write = partial(_write_scene, root, seed, split, style)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            scenes = list(pool.map(write, range(length), chunksize=32))
    else:
        scenes = [write(index) for index in range(length)]
    path = root / f'annotations/instances_{split}2017.json'
    path.write_text(json.dumps(_coco(scenes)))


def make_digit_scenes(
    root: str | Path,
    style: SceneStyle = PRESETS['det'],
    train: int = 2000,
    val: int = 500,
    seed: int = 0,
    workers: int | None = None,
) -> bool:
    """Write the data set below ``root`` in COCO and in Cityscapes layout.

    The folder appears whole or not at all. One that stands already is kept when it was
    made with the same parameters.

    Args:
        root: Folder to make.
        style: Look of the scenes; ``PRESETS`` has one for each task.
        train: Number of training scenes.
        val: Number of validation scenes; their digits come from scans, and writers,
            that no training scene uses.
        seed: The same seed gives the same bytes.
        workers: Processes; as many as there are cores by default.

    Returns:
        Whether the data set was made; False if it stood already.

    Raises:
        ValueError: If ``root`` exists and was made with other parameters, or not by
            this function.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / 'digits'
        >>> make_digit_scenes(folder, train=2, val=1, workers=1)
        True
        >>> sorted(path.name for path in folder.iterdir())
        ['annotations', 'digit_scenes.json', 'gtFine', 'leftImg8bit', \
'train2017', 'val2017']
    """
    root = Path(root)
    recipe = dict(style=asdict(style), train=train, val=val, seed=seed)
    recipe = json.loads(json.dumps(recipe))
    if root.exists():
        _check_same_recipe(root, recipe)
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    partial_root = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        partial_root.chmod(0o755)
        for split, length in zip(SPLITS, (train, val), strict=True):
            _write_split(
                partial_root, seed, split, style, length, workers or os.cpu_count() or 1
            )
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
            f'{root} exists and holds something else: expected DigitScenes made with '
            f'{recipe}, found {found}. Remove the folder or name another one.'
        )
