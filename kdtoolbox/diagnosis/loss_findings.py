"""Judge the losses: their weight, their direction, and whether they can fall."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from kdtoolbox.diagnosis.finding import Finding, Severity
from kdtoolbox.diagnosis.measurements import LossReport, Measurements
from kdtoolbox.diagnosis.suggestions import suggest_weight
from kdtoolbox.distillers.gradient_shares import TASK

LARGEST_SHARE = 0.9
"""Above this share of the gradient, the task moves the student by less than a ninth of
what the teacher does. This alone is no fault: an untrained detector has a small
gradient of its own, and CrossKD of configs/digits begins at 0.998 and helps."""

EXTREME_SHARE = 0.999
"""Above this share the task has less than a thousandth of the gradient, which is lost
in the noise of a batch. The labels no longer count."""

SMALLEST_SHARE = 0.01
"""Below this share the distillation changes less than the noise of a batch does."""

OPPOSED = -0.3
"""Below this cosine a step that lowers one loss clearly raises the other. Gradients of
unrelated losses have a cosine near 0."""

FALLEN = 0.98
"""A loss that falls has less than this part of its first value after a few steps on one
batch. Batch norms and rounding alone change it by less than 2 %."""

EQUAL = 0.98
"""Above this linear CKA the records differ by little more than a rotation and scale."""

_LAST = 3
"""Number of last steps whose mean is compared with the first step."""


def loss_findings(found: Measurements) -> Iterator[Finding]:
    """Yield what looks wrong with the losses and the records that they compare."""
    if found.fault:
        yield Finding(
            'serious',
            'A loss cannot be computed',
            found.fault,
            'mend what the message names; tools/train.py would stop with it',
        )
    for name, report in found.losses.items():
        if name != TASK:
            yield from _balance(name, report)
    for name, values in found.overfit.items():
        if any(values):
            yield from _fall(name, values)
    yield from _equal_records(found)


def _balance(name: str, report: LossReport) -> Iterator[Finding]:
    where = f'model.losses.{name}'
    if report.weight == 0:
        yield Finding(
            'note',
            f'{name} is switched off',
            f'{where}.loss_weight is 0',
            f'set `{where}.loss_weight=1.0` to switch it on',
        )
        return
    if report.value == 0:
        yield Finding(
            'serious',
            f'{name} is always 0',
            'it was exactly 0 on all batches, so it teaches nothing',
            f'check thresholds and masks of {where}, whether teacher and data have the '
            'same classes, and that `student` and `teacher` name different wires',
        )
        return
    yield from _share(name, report)
    cosine = report.cosine
    if cosine is not None and cosine < OPPOSED:
        yield Finding(
            'warning',
            f'{name} opposes the task',
            f'the cosine of both gradients at {report.place} is {cosine:.2f}; a step '
            'that lowers one raises the other',
            f'lower `{where}.loss_weight`, record an earlier layer, or check that the '
            'teacher is right on these images',
        )


def _share(name: str, report: LossReport) -> Iterator[Finding]:
    where, share = f'model.losses.{name}', report.share
    if share is None:
        yield Finding(
            'warning',
            f'{name} and the task train nothing in common',
            'no recorded layer and no parameter of the student gets a gradient of both',
            f'check `student` of {where}',
        )
        return
    if SMALLEST_SHARE <= share <= LARGEST_SHARE:
        return
    severity, degree, advice = _degree(share)
    # The least change after which both losses count.
    aim = LARGEST_SHARE if share > LARGEST_SHARE else 1 - LARGEST_SHARE
    weight = suggest_weight(report, aim)
    yield Finding(
        severity,
        f'The weight of {name} is {degree}',
        f'with loss_weight={report.weight:g} it makes {_percent(share)} of the '
        f'gradient at {report.place}',
        f'check the wires of {where}'
        if weight is None
        else f'{advice}`{where}.loss_weight={weight:.3g}` gives it {aim:.0%}; '
        '`--suggest-weights 0.3` gives the weight for 30%',
    )


def _degree(share: float) -> tuple[Severity, str, str]:
    """Return severity, degree and advice for a share outside of the usual range."""
    if share > EXTREME_SHARE:
        return 'serious', 'far too large', ''
    if share > LARGEST_SHARE:
        condition = "if the student's own loss ends higher than without distillation, "
        return 'note', 'large', condition
    return 'warning', 'far too small', ''


def _percent(share: float) -> str:
    """Return a share with the digits that show how near it is to 100 %."""
    return f'{share:.1%}' if share < EXTREME_SHARE else f'{share:.4%}'


def _fall(name: str, values: Sequence[float]) -> Iterator[Finding]:
    end = sum(values[-_LAST:]) / len(values[-_LAST:])
    if len(values) <= _LAST or end < values[0] - (1 - FALLEN) * abs(values[0]):
        return
    task = name == TASK
    title = "The student's own loss" if task else name
    yield Finding(
        'serious' if task else 'warning',
        f'{title} does not fall on a single batch',
        f'{len(values)} steps took it from {values[0]:.3g} to {end:.3g}',
        'lower the weights of the distillation losses; if it then still does not fall, '
        'check labels and frozen parts of the student'
        if task
        else f'check that model.losses.{name} reads a layer of the student that is '
        'trained, and raise its loss_weight if its share of the gradient is small',
    )


def _equal_records(found: Measurements) -> Iterator[Finding]:
    def pair(x: object) -> tuple[str, str]:
        return x.student, x.teacher  # type: ignore[attr-defined]

    for (student, teacher), group in groupby(found.similarities, pair):
        lowest = min(x.cka for x in group)
        if lowest > EQUAL:
            yield Finding(
                'warning',
                f'{student} and {teacher} are already nearly equal',
                f'their linear CKA is at least {lowest:.3f} on all levels',
                'record other layers, or take a teacher that differs more',
            )
