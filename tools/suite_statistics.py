"""Means and paired differences of a suite's results; part of tools/run_benchmark.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t as student_t
from suite_file import Published, Suite


@dataclass(frozen=True)
class Summary:
    """What the runs of a row amount to.

    Attributes:
        row: Its name.
        seeds: Seeds that are done.
        mean: Mean score; None without a seed.
        std: Standard deviation over the seeds; None for fewer than two.
        pairs: Number of seeds that the baseline has as well.
        difference: Mean over the common seeds of the score minus the baseline's; None
            for the baseline itself and without a common seed.
        interval: The 95 % confidence interval of the difference; None for fewer than
            two common seeds.
        cost: Time of a step in units of the baseline's; None if not measured.
        failed: Number of seeds that failed.
        published: The scores of a paper.
        note: Why the result is as it is.
    """

    row: str
    seeds: list[int]
    mean: float | None
    std: float | None
    pairs: int
    difference: float | None
    interval: tuple[float, float] | None
    cost: float | None
    failed: int
    published: Published | None
    note: str


def summaries(
    suite: Suite, results: Iterable[dict], costs: Mapping[str, float]
) -> list[Summary]:
    """Return a summary of each row of a suite, in the suite's order."""
    rows = list(results)
    baseline = _done(rows, suite.baseline)
    costs = {suite.baseline: 1.0, **costs}
    return [
        _summary(suite, name, rows, baseline, costs.get(name)) for name in suite.rows
    ]


def _summary(
    suite: Suite,
    name: str,
    rows: Sequence[dict],
    baseline: dict[int, dict],
    cost: float | None,
) -> Summary:
    own = _done(rows, name)
    scores = [row['score'] for row in own.values()]
    common = [] if name == suite.baseline else sorted(own.keys() & baseline.keys())
    differences = [own[seed]['score'] - baseline[seed]['score'] for seed in common]
    return Summary(
        name,
        sorted(own),
        mean(scores) if scores else None,
        stdev(scores) if len(scores) > 1 else None,
        len(common),
        mean(differences) if differences else None,
        interval(differences),
        cost,
        sum(row['row'] == name and row['status'] == 'failed' for row in rows),
        suite.published.get(name),
        suite.rows[name].note,
    )


def _done(rows: Iterable[dict], name: str) -> dict[int, dict]:
    return {
        row['seed']: row
        for row in rows
        if row['row'] == name and row['status'] == 'done'
    }


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of paired differences.

    It is Student's t interval, exact for normally distributed differences.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    count = len(differences)
    if count < 2:
        return None
    half = student_t.ppf(0.975, count - 1) * stdev(differences) / sqrt(count)
    middle = mean(differences)
    return middle - float(half), middle + float(half)
