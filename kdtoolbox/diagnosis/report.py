"""Print measurements and findings as tables."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdtoolbox.diagnosis.finding import Finding
from kdtoolbox.diagnosis.measurements import Measurements, Scores
from kdtoolbox.distillers.gradient_shares import TASK

LARGEST_GAPS = 5
"""Number of classes in the table of gaps."""

_STYLES = dict(serious='bold red', warning='yellow', note='cyan')


def print_report(
    found: Measurements, findings: Sequence[Finding], console: Console
) -> None:
    """Print all numbers, then all findings."""
    for table in (
        _models(found),
        _gaps(found.scores),
        _losses(found),
        _layers(found),
        _similarities(found),
        _overfit(found),
    ):
        if table.row_count:
            console.print(table)
    for finding in findings:
        console.print(_entry(finding))
    if not findings:
        console.print(Text('Nothing looks wrong.', 'bold green'))


def _number(value: float | None, form: str = '.3g') -> str:
    return '-' if value is None else format(value, form)


def _models(found: Measurements) -> Table:
    scores, losses = found.scores, found.task_losses
    table = Table('model', scores.metric or 'score', 'task loss', title='Models')
    own = found.losses[TASK].value if TASK in found.losses else None
    student = (
        'student, from the checkpoint' if found.trained else 'student, as initialised'
    )
    table.add_row('teacher', _number(scores.teacher), _number(losses.teacher))
    table.add_row(student, _number(scores.student), _number(own))
    table.add_row(
        'teacher with random weights', _number(scores.random), _number(losses.random)
    )
    table.caption = f'scores on {scores.images} validation images of the student'
    return table


def _gaps(scores: Scores) -> Table:
    table = Table('class', 'teacher', 'student', 'gap', title='Largest gaps per class')
    ahead = [x for x in scores.classes.items() if x[1][0] > x[1][1]]
    ranked = sorted(ahead, key=lambda x: x[1][1] - x[1][0])
    for name, (teacher, student) in ranked[:LARGEST_GAPS]:
        numbers = (teacher, student, teacher - student)
        # As a plain string, rich would read brackets as styles.
        table.add_row(Text(name), *map(_number, numbers))
    return table


def _losses(found: Measurements) -> Table:
    table = Table('loss', 'loss_weight', 'value', 'share of all losses', title='Losses')
    for name, report in found.losses.items():
        share = _number(report.share_of_total, '.1%')
        table.add_row(name, _number(report.weight), _number(report.value), share)
    return table


def _layers(found: Measurements) -> Table:
    table = Table(
        'loss',
        'layer of the student',
        'share of gradient',
        'cosine with task',
        title='Gradients of each loss, compared with the task',
    )
    for name, report in found.losses.items():
        for place, share in report.shares.items():
            mark = ' *' if place == report.place else ''
            cosine = _number(report.cosines.get(place), '.2f')
            table.add_row(name, place + mark, f'{share:.2%}', cosine)
    table.caption = '* the layer by which the weight of the loss is judged'
    return table


def _similarities(found: Measurements) -> Table:
    table = Table('student', 'teacher', 'linear CKA per level', title='Similarity')
    levels: dict[tuple[str, str], list[str]] = {}
    for entry in found.similarities:
        pair = entry.student, entry.teacher
        levels.setdefault(pair, []).append(f'{entry.level}: {entry.cka:.2f}')
    for pair, values in levels.items():
        table.add_row(*pair, '  '.join(values))
    return table


def _overfit(found: Measurements) -> Table:
    steps = max(map(len, found.overfit.values()), default=0)
    table = Table(
        'loss', 'first step', 'last step', title=f'{steps} steps on a single batch'
    )
    for name, values in found.overfit.items():
        table.add_row(name, _number(values[0]), _number(values[-1]))
    return table


def _entry(finding: Finding) -> Group:
    title = f'{finding.severity}: {finding.problem}'
    return Group(
        Text(title, _STYLES[finding.severity]),
        Padding(Text(f'measured: {finding.measured}'), (0, 0, 0, 2), expand=False),
        Padding(Text(f'mend: {finding.mend}'), (0, 0, 0, 2), expand=False),
    )
