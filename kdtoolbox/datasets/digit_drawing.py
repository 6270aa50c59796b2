"""Draw scenes of handwritten digits on photographs, with their label maps."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

CLASSES = tuple('0123456789')
BACKGROUND = len(CLASSES)
IGNORE = 255
# The scans are sorted by writer, so a split by index separates the writers.
TRAIN_SCANS = 1437
TUNING_SCANS = 1150
SPLITS = ('train', 'val')


@dataclass(frozen=True)
class SceneStyle:
    """The look of the scenes. Ranges include both ends.

    Attributes:
        digit_size: Range of a digit's height and width in pixels.
        count: Range of the number of digits in a scene.
        rotation: Largest rotation in degrees, in both directions.
        contrast: Least distance between the mean grey values of a digit and of the
            pixels behind it, in 0 to 255.
        opacity: Range of the share of a digit's colour in the blend.
        noise: Standard deviation of the Gaussian noise, in grey values.
        brightness: Share of the photograph's brightness that is kept.
        size: Height and width of a scene in pixels.
    """

    digit_size: tuple[int, int] = (24, 44)
    count: tuple[int, int] = (2, 4)
    rotation: float = 10.0
    contrast: float = 130.0
    opacity: tuple[float, float] = (0.9, 1.0)
    noise: float = 4.0
    brightness: float = 0.3
    size: tuple[int, int] = (128, 128)


PRESETS = {
    'det': SceneStyle(),
    # To learn in minutes, a segmentor needs larger digits than a detector.
    'seg': SceneStyle(digit_size=(32, 64)),
}


@lru_cache(maxsize=1)
def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    scans = (digits.images / 16.0).astype(np.float32)
    return scans, digits.target, load_sample_images().images


def _background(
    rng: np.random.Generator,
    photos: list[np.ndarray],
    size: tuple[int, int],
    brightness: float,
) -> np.ndarray:
    photo = photos[rng.integers(len(photos))]
    longest = max(size)
    # The crop is at most twice as large as the scene, and fits into the photograph.
    limit = min(longest * photo.shape[axis] // size[axis] for axis in (0, 1))
    largest = min(2 * longest, limit)
    side = int(rng.integers(largest // 2, largest + 1))
    height, width = (max(side * part // longest, 1) for part in size)
    top = rng.integers(photo.shape[0] - height + 1)
    left = rng.integers(photo.shape[1] - width + 1)
    crop = photo[top : top + height, left : left + width]
    crop = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_AREA)
    return brightness * crop.astype(np.float32)


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
    for _ in range(10_000):
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - below.mean()) >= contrast:
            return colour
    raise ValueError(
        f'no colour differs by {contrast:g} grey values from a photograph of mean '
        f'{below.mean():.0f}; lower `contrast` or `brightness`'
    )


def _place(
    rng: np.random.Generator, alpha: np.ndarray, labels: np.ndarray
) -> tuple[slice, slice] | None:
    height, width = alpha.shape
    if height > labels.shape[0] or width > labels.shape[1]:
        return None
    for _ in range(20):
        top = rng.integers(labels.shape[0] - height + 1)
        left = rng.integers(labels.shape[1] - width + 1)
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
    """Draw a digit into ``image`` and ``labels``; return None if it does not fit."""
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


def scans_of(split: str, tuning: bool) -> tuple[int, int]:
    """Return the first scan of a split and the one after its last."""
    if tuning:
        return (0, TUNING_SCANS) if split == 'train' else (TUNING_SCANS, TRAIN_SCANS)
    scans, _, _ = _sources()
    return (0, TRAIN_SCANS) if split == 'train' else (TRAIN_SCANS, len(scans))


def render(
    seed: int, split: str, index: int, style: SceneStyle, tuning: bool = False
) -> dict:
    """Return one scene.

    Args:
        seed: Seed of the data set.
        split: One of `SPLITS`.
        index: Index of the scene in its split.
        style: Look of the scenes.
        tuning: Whether both splits have training writers only.

    Returns:
        ``image`` (H, W, 3) in RGB and ``labels`` (H, W), both uint8, and ``digits``,
        a list of dicts with ``scan``, ``label`` and ``mask``.

    Raises:
        ValueError: If the digits do not fit into the scene, or no colour has enough
            contrast.
    """
    # No photograph is cropped as in a scene that a result is measured on.
    stream = SPLITS.index(split) + len(SPLITS) * tuning
    rng = np.random.default_rng([seed, stream, index])
    _, _, photos = _sources()
    pool = scans_of(split, tuning)
    for _ in range(50):
        image = _background(rng, photos, style.size, style.brightness)
        labels = np.full(style.size, BACKGROUND, np.uint8)
        count = rng.integers(style.count[0], style.count[1] + 1)
        draws = (
            _draw_digit(rng, image, labels, int(rng.integers(*pool)), style)
            for _ in range(count)
        )
        digits = [digit for digit in draws if digit is not None]
        if len(digits) >= style.count[0]:
            break
    else:
        raise ValueError(
            f'{style.count[0]} digits of {style.digit_size} pixels do not fit into a '
            f'scene of {style.size} pixels; lower `digit_size` or `count`, or raise '
            '`size`.'
        )
    image = image + rng.normal(0, style.noise, image.shape)
    return dict(
        image=np.clip(image, 0, 255).astype(np.uint8), labels=labels, digits=digits
    )
