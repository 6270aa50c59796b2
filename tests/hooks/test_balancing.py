import math

import pytest

from kdtoolbox.hooks.balancing import Balance, make_balances

ARGUMENTS = dict(band=0.1, max_change=2.0, limits=(0.01, 100.0))
HALF = Balance(0.5, **ARGUMENTS)


def test_repeated_moves_reach_the_target_and_stay() -> None:
    balance = make_balances(dict(loss_a=0.25), **ARGUMENTS)['loss_a']
    factor, path = 1.0, []
    for _ in range(10):
        # The gradient of a loss is proportional to its weight.
        factor = balance.moved(factor, own=factor * 0.01, task=0.3)
        path.append(factor)
    assert path[:3] == [2, 4, 8]
    assert path[-1] == pytest.approx(8)
    assert factor * 0.01 / (factor * 0.01 + 0.3) == pytest.approx(0.21, abs=0.01)


def test_it_goes_to_the_target_itself_and_down_as_well() -> None:
    assert HALF.moved(1.0, own=1.8, task=1.0) == pytest.approx(1 / 1.8)
    assert HALF.moved(3.0, own=50.0, task=1.0) == 1.5


@pytest.mark.parametrize('own', [0.7, 1.0, 1.4])
def test_inside_the_band_nothing_moves(own: float) -> None:
    assert HALF.moved(0.3, own, task=1.0) == 0.3


@pytest.mark.parametrize(('factor', 'own', 'end'), [(90, 0.1, 100), (0.011, 9, 0.01)])
def test_limits(factor: float, own: float, end: float) -> None:
    assert HALF.moved(factor, own, task=1.0) == end


@pytest.mark.parametrize('bad', [0.0, -1.0, math.nan, math.inf])
def test_numbers_without_meaning_move_nothing(bad: float) -> None:
    assert HALF.moved(0.7, bad, 1.0) == HALF.moved(0.7, 1.0, bad) == 0.7


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(shares={}), r'got \{\}; write shares='),
        (dict(shares=0.3), 'got 0.3; write shares='),
        (dict(shares=dict(loss_a=1.0)), 'between 0 and 1, got loss_a=1.0'),
        (dict(shares=dict(loss_a=0.05)), 'band=0.1 .* set a band below 0.05'),
        (dict(shares=dict(loss_a=0.95)), 'band=0.1 .* set a band below 0.05'),
        (dict(band=-0.1), 'band=-0.1'),
        (dict(max_change=1.0), 'expected max_change > 1, got 1.0'),
        (dict(limits=(0.0, 2.0)), r'expected limits.*got \(0.0, 2.0\)'),
        (dict(limits=(2.0, 3.0)), 'expected limits'),
        (dict(limits=(0.1, math.inf)), 'expected limits'),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balances(**(dict(shares=dict(loss_a=0.5)) | ARGUMENTS | changes))
