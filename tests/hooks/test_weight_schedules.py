import math
from typing import Any

import pytest

from kdtoolbox.hooks.weight_schedules import factor_at, read_schedule


def factors(*schedule: dict, until: int) -> list[float]:
    phases = read_schedule(schedule, 'schedule')
    return [round(factor_at(phases, progress), 6) for progress in range(until)]


def test_linear_reaches_both_ends_and_keeps_the_last() -> None:
    phase = dict(kind='linear', begin=2, end=4, start=1.0, stop=3.0)
    assert factors(phase, until=7) == [1, 1, 1, 2, 3, 3, 3]


def test_cosine() -> None:
    phase = dict(kind='cosine', end=4, start=2.0, stop=1.0)
    half = [1.5 + 0.5 * math.cos(math.pi * done / 4) for done in range(5)]
    assert factors(phase, until=6) == [round(x, 6) for x in [*half, 1.0]]


def test_step_counts_milestones_from_the_start_of_training() -> None:
    phase = dict(kind='step', begin=1, milestones=[2, 4], gamma=0.5, start=4.0)
    assert factors(phase, until=6) == [4, 4, 2, 2, 1, 1]


def test_stop_alone_leaves_the_configured_weight_before() -> None:
    assert factors(dict(kind='stop', begin=2), until=4) == [1, 1, 0, 0]


def test_phases_follow_each_other_and_gaps_keep_the_last_value() -> None:
    schedule = (
        dict(kind='constant', end=2, factor=0.5),
        dict(kind='linear', end=4, start=1.0, stop=2.0),
        dict(kind='constant', begin=6, factor=3.0),
        dict(kind='stop', begin=8),
    )
    assert factors(*schedule, until=10) == [0.5, 0.5, 1, 1.5, 2, 2, 3, 3, 0, 0]


def test_end_none_is_no_end() -> None:
    assert factors(dict(kind='constant', end=None, factor=2.0), until=2) == [2, 2]


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        ([], r'expected a list of phases, got \[\]; write'),
        (dict(kind='linear', end=3), 'expected a list of phases'),
        (['linear'], r"s\[0\]: expected a dict with a known `kind`, got 'linear'"),
        ([dict(kind='lineal', end=3)], "did you mean 'linear'"),
        ([dict(kind='linear', end=0)], 'expected 0 <= begin < end, got begin=0 and'),
        ([dict(kind='linear', begin=-2, end=3)], 'got begin=-2 and end=3'),
        ([dict(kind='linear', end=3, start=-1.0)], r's\[0\].*start'),
        (
            [dict(kind='linear', end=3), dict(kind='cosine', begin=2, end=5)],
            r's\[1\] begins at 2, before the previous phase ends; write begin=3',
        ),
        (
            [dict(kind='constant', begin=3), dict(kind='stop', begin=3)],
            r's\[1\] begins at 3.*write begin=4 or more',
        ),
        (
            [dict(kind='stop', begin=3), dict(kind='constant', begin=5)],
            r's\[1\] follows a stop',
        ),
        ([dict(kind='step', milestones=[4, 2])], r'rising milestones.*got \[4, 2\]'),
        ([dict(kind='step', milestones=[6], end=5)], 'between begin=0 and end=5'),
    ],
)
def test_wrong_schedules_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_schedule(schedule, 's')


@pytest.mark.parametrize(
    ('phase', 'message'),
    [
        (dict(kind='linear'), r"s\[0\]: linear needs 'end'"),
        (dict(kind='linear', end=3, to=1.0), "linear takes no 'to'"),
        (dict(kind='step'), "step needs 'milestones'"),
        (dict(kind='step', milestones=3), r'write milestones=\[3\]'),
        (dict(kind='linear', end=1.5), 'expected whole numbers'),
    ],
)
def test_wrong_keys_are_refused(phase: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_schedule([phase], 's')


def test_a_phase_after_an_open_one_needs_a_begin() -> None:
    open_end = [dict(kind='constant'), dict(kind='stop')]
    with pytest.raises(TypeError, match=r"s\[1\]: stop needs 'begin'"):
        read_schedule(open_end, 's')
