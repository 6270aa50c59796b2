"""Check the arguments of a foundation teacher before its model is built."""

from collections.abc import Sequence
from typing import Any

COLOURS = 3


def check_layers(layers: Any, where: str) -> None:
    """Raise ValueError unless ``layers`` is a list of whole numbers, or None.

    Example:
        >>> check_layers([2, -1], 'model.teacher')
    """
    is_list = isinstance(layers, Sequence) and not isinstance(layers, str)
    if layers is None or (is_list and layers and all(map(_is_whole, layers))):
        return
    raise ValueError(
        f'{where}.layers: expected a list of whole numbers, got {layers!r}; write '
        'layers=[-1] for the last layer'
    )


def check_patch_size(patch_size: Any, where: str) -> None:
    """Raise ValueError unless ``patch_size`` is a whole number above 0, or None."""
    if patch_size is not None and not (_is_whole(patch_size) and patch_size > 0):
        raise ValueError(
            f'{where}.patch_size: expected a whole number of pixels above 0, got '
            f'{patch_size!r}; write patch_size=14'
        )


def check_statistics(mean: Any, std: Any, where: str) -> None:
    """Raise ValueError unless mean and std are those of three colours in pixel units.

    Args:
        mean: The mean that the user gave, or None.
        std: The standard deviation that the user gave, or None.
        where: Config path of the teacher.
    """
    for name, values in (('mean', mean), ('std', std)):
        if values is not None and not _are_colours(values):
            raise ValueError(
                f'{where}.{name}: expected {COLOURS} numbers in pixel units, got '
                f'{values!r}; write {name}=[127.5, 127.5, 127.5] with the numbers of '
                'the model'
            )
    if std is None:
        return
    if min(std) <= 0:
        raise ValueError(
            f'{where}.std: expected numbers above 0, got {list(std)}; remove `std`, or '
            'write std=[1, 1, 1] for images that are only shifted'
        )
    if max(std) < 1:
        pixels = ', '.join(f'{255 * value:.6g}' for value in std)
        raise ValueError(
            f'{where}.std: expected pixel units, 0 to 255, got {list(std)}, which is '
            f'for images of 0 to 1; multiply `mean` and `std` by 255: std=[{pixels}]'
        )


def _are_colours(values: Any) -> bool:
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    return is_list and len(values) == COLOURS and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
