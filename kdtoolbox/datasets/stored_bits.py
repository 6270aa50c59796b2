"""What the files of images and label maps hold that 8 bits do not."""

import os

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

_OF_8_BITS = ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA')


def cut_labels(path: str | os.PathLike) -> str | None:
    """Say which labels of a file are not the whole numbers from 0 to 255.

    Only the head of the file is read if that says that each has 8 bits.

    Args:
        path: The label map, on a local disk.

    Returns:
        The first of them, what they are read as, and what mends it; None if there are
        none, or the file is not of a kind or size that PIL reads.
    """
    try:
        image = Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    with image:
        if image.mode in _OF_8_BITS:
            return None
        stored = np.asarray(image)
    # Of NaN and the like numpy would warn.
    with np.errstate(invalid='ignore'):
        wrong = np.unique(stored[stored != stored.astype(np.uint8)])
        told = [f'{value} as {value.astype(np.uint8)}' for value in wrong[:3]]
    if not told:
        return None
    return (
        f'labels of {stored.dtype.name} of which 8 bits are read: '
        f'{", ".join(told)}. Write whole numbers from 0 to 255, with 255 for what is '
        'ignored'
    )


def cut_depth(path: str, read: np.dtype | None) -> str | None:
    """Say how an image is stored if that is not how it was read.

    Args:
        path: The image, on a local disk.
        read: The kind of what was read of it, if anything was.
    """
    # JPEGs have 8 bits each.
    if read != np.uint8 or path.lower().endswith(('.jpg', '.jpeg')):
        return None
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype == read:
        return None
    return f'{stored.dtype} in the file, read as {read}'
