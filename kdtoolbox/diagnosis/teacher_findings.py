"""Judge the teacher: is it loaded, is it better than the student, does it fit?"""

from collections.abc import Iterator

from kdtoolbox.diagnosis.finding import Finding
from kdtoolbox.diagnosis.measurements import Measurements, Scores

CHANCE_LOSS = 0.9
"""A trained teacher's loss is far below that of random weights, usually below half."""

CHANCE_SCORE = 0.01
"""Random weights reach this part of the best score by luck; a teacher has to be above
them by more."""

SLIGHT_GAP = 0.05
"""Part of the score by which the two should differ: less is within the noise of a few
images, and what a student can gain is a fraction of the gap."""

SATURATED = 0.95
"""Part of the best score above which a student has nothing left to learn."""

_CHECKPOINT = (
    'name the weights that belong to `model.teacher.config` as '
    "`model.teacher.checkpoint='...'`, and evaluate them with "
    'tools/test.py TEACHER_CONFIG CHECKPOINT'
)


def teacher_findings(found: Measurements) -> Iterator[Finding]:
    """Yield what looks wrong with the teacher, the data and the student's score."""
    yield from _class_lists(found)
    broken = [*_broken(found)]
    yield from broken
    yield from _unknown(found)
    yield from _gap(found.scores, bool(broken))


def _class_lists(found: Measurements) -> Iterator[Finding]:
    classes = found.classes
    if not classes.differ:
        return
    counts = ' and '.join(map(str, classes.counts))
    # No order of names mends different numbers.
    harmless = not classes.fault and len({*classes.counts} - {None}) > 1
    yield Finding(
        'serious' if classes.fault else 'warning',
        'The classes of teacher and data differ',
        classes.fault
        or f'heads of teacher and student have {counts} classes; the teacher names '
        f'{classes.teacher}, the data {classes.data}',
        'none is needed while no loss compares classes, as in this recipe; one on '
        'logits needs a teacher of the classes of the data'
        if harmless
        else 'list the classes in the order of the teacher as '
        '`train_dataloader.dataset.metainfo.classes`, or use only losses on features',
    )


def _broken(found: Measurements) -> Iterator[Finding]:
    losses, scores = found.task_losses, found.scores
    if losses.at_chance(CHANCE_LOSS):
        yield Finding(
            'serious',
            'The teacher is broken: it does no better than random weights',
            f'its task loss on training batches is {losses.teacher:.3g}; the same '
            f'model with random weights has {losses.random:.3g}',
            _CHECKPOINT,
        )
    elif scores.at_chance(CHANCE_SCORE):
        yield Finding(
            'serious',
            'The teacher is broken: it scores no better than random weights',
            f'{_named(scores)} is {scores.teacher:.3g}, and {scores.random:.3g} '
            'for the same model with random weights',
            _CHECKPOINT + '; compare also the `data_preprocessor` and the image size '
            'of the two recipes',
        )


def _unknown(found: Measurements) -> Iterator[Finding]:
    for what, fault in (
        ('scored', found.scores.fault),
        ("tried on the task's losses", found.task_losses.fault),
    ):
        if fault:
            yield Finding(
                'note',
                f'The teacher could not be {what}',
                fault,
                'evaluate it by itself: tools/test.py TEACHER_CONFIG CHECKPOINT',
            )


def _gap(scores: Scores, broken: bool) -> Iterator[Finding]:
    if scores.teacher is None or scores.student is None:
        return
    values = f'{_named(scores)}: {scores.teacher:.3g} and {scores.student:.3g}'
    gap = scores.teacher - scores.student
    stronger = (
        'take a stronger teacher as `model.teacher.config` and '
        '`model.teacher.checkpoint`'
    )
    # Two models that know nothing differ by chance.
    if -gap > max(SLIGHT_GAP * scores.student, CHANCE_SCORE * scores.perfect):
        yield Finding(
            'serious',
            'The teacher is worse than the student',
            f'{values} for teacher and student',
            stronger + ', or check that this one is evaluated at its own image size',
        )
    elif scores.student > SATURATED * scores.perfect:
        yield Finding(
            'warning',
            'The student has nothing left to learn',
            f'{values} for teacher and student, of {scores.perfect:g}',
            'leave the distillation out, or take a smaller student',
        )
    elif gap < SLIGHT_GAP * scores.teacher and not broken:
        yield Finding(
            'warning',
            'The teacher is hardly better than the student',
            f'{values} for teacher and student',
            stronger + '; judge with more images first: --batches 40',
        )


def _named(scores: Scores) -> str:
    return f'{scores.metric} on {scores.images} images'
