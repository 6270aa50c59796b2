"""Decide how the weight of a loss moves towards a share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdtoolbox.distillers.gradient_shares import share


class Balance(NamedTuple):
    """How the factor on a configured weight moves.

    Attributes:
        target: The share that the loss should have.
        band: Allowed distance from the target.
        max_change: Largest change of the factor, itself a factor.
        limits: Smallest and largest factor.
    """

    target: float
    band: float
    max_change: float
    limits: Sequence[float]

    def holds(self, own: float, task: float) -> bool:
        """Return whether the share is inside its band, or has no meaning.

        Args:
            own: Gradient norm, or value, of the loss.
            task: The same of the student's own losses.
        """
        found = share(own, task)
        # A loss of 0 has no object in this batch, for example. No weight changes that.
        if found is None or not own or not task:
            return True
        return abs(found - self.target) <= self.band

    def moved(self, factor: float, own: float, task: float) -> float:
        """Return the next factor.

        Args:
            factor: The factor with which `own` was measured.
            own: Gradient norm, or value, of the loss.
            task: The same of the student's own losses.

        Example:
            >>> balance = Balance(0.5, band=0.1, max_change=4.0, limits=(0.1, 10.0))
            >>> balance.moved(1.0, own=1.0, task=1.2)
            1.0
            >>> balance.moved(1.0, own=1.0, task=3.0)
            3.0
            >>> balance.moved(5.0, own=1.0, task=99.0)
            10.0
        """
        if self.holds(own, task):
            return factor
        wanted = self.target / (1 - self.target) * (task / own)
        change = min(max(wanted, 1 / self.max_change), self.max_change)
        low, high = self.limits
        return min(max(factor * change, low), high)


def make_balances(
    shares: Mapping[str, float],
    band: float,
    max_change: float,
    limits: Sequence[float],
) -> dict[str, Balance]:
    """Return the balance of each loss.

    Raises:
        ValueError: If a number is out of range.
    """
    if not isinstance(shares, Mapping) or not shares:
        raise ValueError(
            f'LossBalanceHook: expected the share of each loss, got {shares!r}; write '
            'shares=dict(loss_pkd=0.3)'
        )
    for name, target in shares.items():
        room = min(target, 1 - target)
        if not 0 < target < 1:
            raise ValueError(
                f'LossBalanceHook: expected a share between 0 and 1, got '
                f'{name}={target}; write {name}=0.3'
            )
        if not 0 <= band < room:
            raise ValueError(
                f'LossBalanceHook: band={band} around {name}={target} leaves the range '
                f'from 0 to 1; set a band below {room:g}'
            )
    if not 1 < max_change < float('inf'):
        raise ValueError(
            f'LossBalanceHook: expected max_change > 1, got {max_change}; write '
            'max_change=2.0'
        )
    if len(limits) != 2 or not 0 < limits[0] <= 1 <= limits[1] < float('inf'):
        raise ValueError(
            f'LossBalanceHook: expected limits=(low, high) with 0 < low <= 1 <= high, '
            f'got {limits}; write limits=(0.01, 100.0)'
        )
    return {
        name: Balance(target, band, max_change, limits)
        for name, target in shares.items()
    }
