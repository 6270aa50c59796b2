"""Check the numeric arguments of losses and connectors."""

import math
from typing import Any


def check_at_least(owner: str, least: float, **numbers: Any) -> None:
    """Check that numbers are finite and at least `least`.

    Args:
        owner: Class name of the loss or connector.
        least: Smallest allowed value.
        **numbers: The values by argument name.

    Raises:
        ValueError: If a value is not such a number.

    Example:
        >>> check_at_least('KDLoss', 0, loss_weight=2.0)
    """
    for name, value in numbers.items():
        if not (_is_number(value) and value >= least):
            wanted = f'a finite number of at least {least}'
            _refuse(owner, name, value, wanted, least + 1.0)


def check_above(owner: str, bound: float, **numbers: Any) -> None:
    """Check that numbers are finite and above `bound`.

    Args:
        owner: Class name of the loss or connector.
        bound: Every value must be larger.
        **numbers: The values by argument name.

    Raises:
        ValueError: If a value is not such a number.

    Example:
        >>> check_above('ABLoss', 0, margin=1.0)
    """
    for name, value in numbers.items():
        if not (_is_number(value) and value > bound):
            wanted = f'a finite number above {bound}'
            _refuse(owner, name, value, wanted, math.floor(bound) + 1.0)


def check_share(
    owner: str, *, zero: bool = True, one: bool = True, **shares: Any
) -> None:
    """Check that numbers are between 0 and 1.

    Args:
        owner: Class name of the loss or connector.
        zero: Whether 0 is allowed.
        one: Whether 1 is allowed.
        **shares: The values by argument name.

    Raises:
        ValueError: If a value is not such a number.

    Example:
        >>> check_share('MGDConnector', one=False, mask_ratio=0.65)
    """
    for name, value in shares.items():
        inside = _is_number(value) and 0 <= value <= 1
        if not inside or (value == 0 and not zero) or (value == 1 and not one):
            low = 'at least 0' if zero else 'above 0'
            high = 'at most 1' if one else 'below 1'
            _refuse(owner, name, value, f'{low} and {high}', 0.5)


def check_counts(
    owner: str, *, least: int = 1, odd: bool = False, **counts: Any
) -> None:
    """Check that values are integers of at least `least`, or lists of them.

    Args:
        owner: Class name of the loss or connector.
        least: Smallest allowed value.
        odd: Whether the integers have to be odd, such as kernel sizes.
        **counts: The values by argument name.

    Raises:
        ValueError: If a value is not such an integer, or a list is empty.

    Example:
        >>> check_counts('FGDLoss', channels=256, num_levels=5)
        >>> check_counts('ABFConnector', in_channels=[256, 512])
    """
    for name, value in counts.items():
        several = isinstance(value, (list, tuple))
        values = value if several else [value]
        if not values or not all(
            _is_number(x) and isinstance(x, int) and x >= least and (x % 2 or not odd)
            for x in values
        ):
            kind = 'an odd integer' if odd else 'an integer'
            wanted = f'{kind} of at least {least}'
            example: Any = max(least, 3 if odd else 4)
            if several:
                wanted, example = f'a list with {wanted} per level', [example]
            _refuse(owner, name, value, wanted, example)


def _is_number(value: Any) -> bool:
    # In Python, True is an int.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _refuse(owner: str, name: str, value: Any, wanted: str, example: Any) -> None:
    is_connector = owner.endswith('Connector')
    kind, place = ('connector', 'connectors') if is_connector else ('loss', 'losses')
    raise ValueError(
        f'{owner}: {name} must be {wanted}, got {value!r}; write for instance '
        f'{name}={example} in the entry of this {kind} under `{place}`'
    )
