"""Write the model zoo: every recipe with its pair and its scores.

The published scores are those of the metafiles, ours those of the benchmarks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from method_table import ROOT, metafiles
from tables import sortable

from kdtoolbox.recipes.results import benchmark_gains

METRICS = {
    'Object Detection': 'box AP',
    'Instance Segmentation': 'mask AP',
    'Semantic Segmentation': 'mIoU',
}
"""The metric of a recipe without a score, by its task."""

PAGE = """\
# Model zoo

{number} recipes of `configs/`. Click a heading to sort a table. A name leads to the
page of the method, a place, such as FPN, to the recipe that distils there. The three
scores are those of the student alone, of the distilled student and of the teacher.

The last column says who measured the distilled student:

- `paper`: the paper of the method. `reported by`: another repository. We have run none
  of these recipes at full length. The other two scores are those of the configs in the
  model zoos of mmdet and mmseg, which may differ from the paper's own.
- `ours`: our own run, with its seeds and commit.
- `not run`: no number is published, and we have none.

The weights of the teachers are those of mmdet and mmseg; the recipes contain their
addresses. We publish no weights of distilled students. Two small teachers are in
[configs/digits](../configs/digits).

{sections}
"""


@dataclass(frozen=True)
class Entry:
    """A recipe with one of its scores."""

    section: str
    method: str
    page: str
    config: str
    place: str
    student: str
    teacher: str
    scores: tuple[float | None, float | None, float | None]
    source: str

    @property
    def cells(self) -> list[str]:
        """The cells of its row."""
        return [
            f'[{self.method}]({self.page})',
            f'[{self.place}](../{self.config})',
            self.student,
            self.teacher,
            *('-' if score is None else f'{score:g}' for score in self.scores),
            self.source,
        ]


def model_name(config: str | None) -> str:
    """Return the name of a config without its schedule of GPUs and its data set."""
    stem = (config or '-').rpartition('/')[2].removesuffix('.py')
    return re.sub(r'_(coco|cityscapes|ade20k)[\w-]*$|_\d+xb\d+(?=-)', '', stem)


def published() -> Iterator[Entry]:
    """Yield the recipes of the metafiles, once for each metric."""
    for metafile in metafiles().values():
        for model in metafile['Models']:
            yield from entries_of(model)


def entries_of(model: dict) -> Iterator[Entry]:
    """Yield the entries of a recipe in a metafile."""
    data = model['Metadata']
    [result] = model['Results']
    student, teacher = data.get('Student', {}), data.get('Teacher', {})
    for metric in result['Metrics'] or [METRICS[result['Task']]]:
        sides = (
            student.get('Metrics', {}),
            result['Metrics'],
            teacher.get('Metrics', {}),
        )
        alone, distilled, best = (scores.get(metric) for scores in sides)
        known = [metric] if {alone, distilled, best} != {None} else []
        yield Entry(
            ', '.join([result['Dataset'], *known]),
            model['In Collection'],
            f'methods/{Path(model["Config"]).parent.name}.md',
            model['Config'],
            data['Location'],
            model_name(student.get('Config')),
            model_name(teacher.get('Config') or teacher.get('Model')),
            (alone, distilled, best),
            result['Source'],
        )


def ours() -> Iterator[Entry]:
    """Yield our runs on DigitScenes."""
    known = metafiles()
    for suite, gains in benchmark_gains(ROOT / 'configs').items():
        task = suite.removeprefix('digits_')
        for row, gain in gains.items():
            yield Entry(
                f'DigitScenes, {gain.metric}',
                row,
                f'methods/{row}.md' if row in known else 'benchmark.md',
                f'configs/benchmarks/{suite}.py',
                suite,
                f'{task}_student',
                f'{task}_teacher',
                (round(gain.student, 1), round(gain.distilled, 1), None),
                f'ours, {gain.seeds} seeds: [benchmark](benchmark.md)',
            )


def scored(rows: list[list[str]]) -> int:
    """Return how many rows have a score of the distilled student."""
    return sum(row[5] != '-' for row in rows)


def page() -> str:
    """Return the page; what has most scores comes first."""
    entries = sorted([*published(), *ours()], key=lambda x: x.scores[1] is None)
    sections: dict[str, list[list[str]]] = {}
    for entry in entries:
        sections.setdefault(entry.section, []).append(entry.cells)
    head = ['method', 'place', 'student', 'teacher', 'alone', 'distilled', "teacher's"]
    tables = [
        f'## {section}\n\n{sortable([*head, "measured by"], rows)}'
        for section, rows in sorted(sections.items(), key=lambda x: -scored(x[1]))
    ]
    number = len({entry.config for entry in entries})
    return PAGE.format(number=number, sections='\n\n'.join(tables))
