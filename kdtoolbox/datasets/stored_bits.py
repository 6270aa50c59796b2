"""Find images and label maps whose files hold values that do not fit into 8 bits."""

import os

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

_MODES_OF_8_BITS = ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA')


def truncated_labels(path: str | os.PathLike) -> str | None:
    """Describe the labels of a file that are not whole numbers from 0 to 255.

    Only the header of the file is read if it says that each label has 8 bits.

    Args:
        path: The label map, on a local disk.

    Returns:
        The first such labels, the values that they are read as, and the fix. None if
        there are none, or if PIL cannot read files of this kind or size.
    """
    try:
        image = Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    with image:
        if image.mode in _MODES_OF_8_BITS:
            return None
        stored = np.asarray(image)
    # numpy warns when it casts NaN.
    with np.errstate(invalid='ignore'):
        wrong = np.unique(stored[stored != stored.astype(np.uint8)])
        examples = [f'{value} as {value.astype(np.uint8)}' for value in wrong[:3]]
    if not examples:
        return None
    return (
        f'labels of type {stored.dtype.name} that are read as 8 bits: '
        f'{", ".join(examples)}. Write whole numbers from 0 to 255, with 255 for '
        'ignored pixels'
    )


def truncated_depth(path: str, read: np.dtype | None) -> str | None:
    """Describe the type of an image's stored values if it was read as another type.

    Args:
        path: The image, on a local disk.
        read: The type of the values that were read, or None.
    """
    # JPEG files always have 8 bits per value.
    if read != np.uint8 or path.lower().endswith(('.jpg', '.jpeg')):
        return None
    stored = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype == read:
        return None
    return f'{stored.dtype} in the file, read as {read}'
