"""Choose layers of a backbone by their numbers."""

from collections.abc import Sequence


def resolve_layers(layers: Sequence[int], depth: int, where: str) -> list[int]:
    """Return the numbers of layers without negative ones.

    Args:
        layers: Numbers from 0; negative ones count from the last layer.
        depth: The number of layers that there are.
        where: Config path of the layers, for errors.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> resolve_layers([2, -1], 12, 'layers')
        [2, 11]
    """
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong:
        raise ValueError(
            f'{where}: the model has no layers {wrong}; it has {depth}: choose from '
            f'{-depth} to {depth - 1}, -1 is the last'
        )
    return [layer % depth for layer in layers]
