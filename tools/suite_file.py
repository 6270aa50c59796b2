"""The file of a suite, read and checked; part of tools/run_benchmark.py."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite_options import arguments_of

from kdtoolbox.configuration import (
    check_keys,
    did_you_mean,
    files_of,
    find_file,
    load_config,
)
from kdtoolbox.recipes.templates import method_names


@dataclass
class Row:
    """One way to train the student.

    Attributes:
        name: Its key in the suite.
        method: A folder of configs/; None for the student alone or a recipe.
        at: Where the method compares features, as in ``--at``.
        config: A recipe to train in place of a method.
        options: Config entries of its own.
        seeds: Its seeds.
        note: Why its result is as it is, in one sentence.
    """

    name: str
    method: str | None = None
    at: str | None = None
    config: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    note: str = ''


@dataclass
class Teacher:
    """The teacher.

    Attributes:
        config: Its config.
        checkpoint: Its weights.
        cache: As in a recipe: where its records are kept, for all rows and seeds.
    """

    config: str
    checkpoint: str | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the config entries of a distillation that the cache needs."""
        return {f'model.teacher.cache.{key}': v for key, v in self.cache.items()}


@dataclass
class Published:
    """The scores of a paper, and which paper that is."""

    student: float
    distilled: float
    source: str


@dataclass
class Tuning:
    """The search for the weight of each method.

    Attributes:
        factors: The factors by which the weights are multiplied.
        seeds: Seeds of each factor.
        data: Its folder in ``data/``; DigitScenes are made.
        options: Config entries, which let the runs read these data.
    """

    factors: list[float]
    seeds: list[int]
    data: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Suite:
    """What a suite compares.

    Attributes:
        path: Its file.
        student: The plain config of the student.
        teacher: The teacher of all rows with a method.
        metric: The key of the score in the JSON that ``tools/test.py`` writes.
        rows: What is compared. The first one without method and config is the baseline.
        seeds: Seeds of the rows that have none of their own.
        scale: Factor from the metric to percent.
        data: Folder in ``data/`` that has to exist; DigitScenes are made.
        gpus: GPUs, and processes, of each run.
        images: Number of training images, which gives the iterations of an epoch.
        size: Height and width of the images with which ``--cost`` measures.
        options: Config entries of all rows.
        published: The scores of papers by row.
        tuning: How ``--tune`` searches.
    """

    path: Path
    student: str
    teacher: Teacher
    metric: str
    rows: dict[str, Row]
    seeds: list[int]
    scale: float = 1.0
    data: str | None = None
    gpus: int = 1
    images: int | None = None
    size: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def baseline(self) -> str:
        """Return the name of the row to which the others are compared."""
        alone = (r.name for r in self.rows.values() if not (r.method or r.config))
        return next(alone)


def read_suite(path: Path) -> Suite:
    """Read a suite and check it.

    Raises:
        ValueError: If a key, a file or a value is wrong. The message names the line
            that mends it.
    """
    if path.suffix != '.py':
        raise ValueError(f'{path}: expected a suite, which is a file with .py')
    found = load_config(path, 'suite').to_dict()
    suite = _made(Suite, found, path.name, path=path)
    _check_texts(suite, path.name, needed=('student', 'metric'), others=('data',))
    suite.student = _file(suite.student, path, 'student')
    suite.teacher = _teacher(suite)
    _read_rows(suite)
    if suite.tuning is not None:
        suite.tuning = _made(Tuning, suite.tuning, f'{path.name}: tuning')
        _check_seeds(suite.tuning.seeds, f'{path.name}: tuning.seeds')
        _check_factors(suite.tuning.factors, f'{path.name}: tuning.factors')
        arguments_of(suite.tuning.options, f'{path.name}: tuning.options')
    arguments_of(suite.options, f'{path.name}: options')
    _check_common(suite.options, f'{path.name}: options')
    if not isinstance(suite.scale, int | float):
        raise ValueError(
            f'{path.name}: scale: expected a number, got {suite.scale!r}; write '
            '`scale = 100`'
        )
    for name in ('gpus', 'images'):
        _check_count(getattr(suite, name), f'{path.name}: {name}')
    _check_size(suite.size, f'{path.name}: size')
    return suite


def _read_rows(suite: Suite) -> None:
    """Read the rows and what was published of them."""
    name = suite.path.name
    _check_seeds(suite.seeds, f'{name}: seeds')
    for key in ('rows', 'published'):
        if not isinstance(getattr(suite, key), dict):
            raise ValueError(
                f'{name}: {key}: expected a dict, got {getattr(suite, key)!r}; '
                f'write `{key} = dict(...)`'
            )
    suite.rows = {key: _row(key, row, suite) for key, row in suite.rows.items()}
    if all(row.method or row.config for row in suite.rows.values()):
        raise ValueError(
            f'{name}: rows: expected one with neither method nor config, to '
            'compare the others with; add `student=dict(),`'
        )
    check_names(suite.published, suite.rows, f'{name}: published')
    suite.published = {
        key: _published(scores, f'{name}: published.{key}')
        for key, scores in suite.published.items()
    }


def _published(values: Any, where: str) -> Published:
    found = _made(Published, values, where)
    scores = (found.student, found.distilled)
    numbers = all(isinstance(score, int | float) for score in scores)
    if not (numbers and isinstance(found.source, str) and found.source):
        raise ValueError(
            f'{where}: expected two scores and their source, got {values!r}; write '
            "`dict(student=37.4, distilled=40.1, source='paper, arXiv ...')`"
        )
    return found


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Check that names are those of rows.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        if name not in known:
            raise ValueError(
                f'{where}: there is no row {name!r}{did_you_mean(name, known)}'
            )


def _check_common(options: Iterable[str], where: str) -> None:
    for key in options:
        if key.partition('.')[0] == 'model':
            raise ValueError(
                f'{where}: {key!r} would be of the student in one row and of the '
                'distiller in another; write it in a config that inherits the '
                "student's, and name that config as `student`"
            )


def _made(kind: type, values: Any, where: str, **given: Any) -> Any:
    """Return a dataclass from a dict of a suite."""
    if not isinstance(values, dict):
        raise ValueError(
            f'{where}: expected a dict, got {values!r}; write `dict(...)` with the '
            f'keys {", ".join(kind.__dataclass_fields__)}'
        )
    try:
        check_keys(values, kind, where, given=tuple(given))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return kind(**values, **given)


def _row(name: str, values: Any, suite: Suite) -> Row:
    where = f'{suite.path.name}: rows.{name}'
    if not (isinstance(name, str) and re.fullmatch(r'[\w+-][\w.+-]*', name)):
        raise ValueError(
            f'{where}: its runs get a folder of this name; rename it with letters, '
            'digits, and . + - _'
        )
    row = _made(Row, values, where, name=name)
    _check_texts(row, where, others=('method', 'at', 'config'))
    if row.method and row.config:
        raise ValueError(
            f'{where}: expected method or config, got both; remove '
            f'`config={row.config!r}` to train by the method'
        )
    if row.at and not row.method:
        raise ValueError(f'{where}: `at` needs a method; remove `at={row.at!r}`')
    if row.method and row.method not in method_names():
        raise ValueError(
            f'{where}: there is no method {row.method!r}'
            f'{did_you_mean(row.method, method_names())}'
        )
    if row.config:
        row.config = _file(row.config, suite.path, f'rows.{name}.config')
    if 'seeds' not in values:
        row.seeds = suite.seeds
    _check_seeds(row.seeds, f'{where}.seeds')
    arguments_of(row.options, f'{where}.options')
    return row


def _teacher(suite: Suite) -> Teacher:
    teacher = _made(Teacher, suite.teacher, f'{suite.path.name}: teacher')
    where = f'{suite.path.name}: teacher'
    _check_texts(teacher, where, needed=('config',), others=('checkpoint',))
    teacher.config = _file(teacher.config, suite.path, 'teacher.config')
    if teacher.checkpoint and '://' not in teacher.checkpoint:
        place = 'teacher.checkpoint'
        teacher.checkpoint = _file(teacher.checkpoint, suite.path, place)
    if not isinstance(teacher.cache, dict):
        raise ValueError(
            f'{suite.path.name}: teacher.cache: expected a dict, got '
            f"{teacher.cache!r}; write `cache=dict(path='caches/NAME', views=1)`"
        )
    arguments_of(teacher.options(), f'{suite.path.name}: teacher.cache')
    return teacher


def _file(source: str, suite: Path, where: str) -> str:
    """Return how a command names a file from the working folder."""
    # An inherited path begins at the folder of the file that has it.
    folders = [file.parent for file in files_of(suite)]
    path = find_file(source, folders, f'{suite.name}: {where}')
    if '::' in source:
        return source
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _check_texts(
    owner: Any, where: str, needed: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> None:
    """Check that attributes are strings; the others may also be None."""
    for key in (*needed, *others):
        value = getattr(owner, key)
        if not (isinstance(value, str) or (value is None and key in others)):
            raise ValueError(
                f'{where}{"." if ":" in where else ": "}{key}: expected a string, got '
                f"{value!r}; write `{key}='...'`"
            )


def _check_count(value: Any, where: str) -> None:
    if value is not None and not (isinstance(value, int) and value > 0):
        raise ValueError(
            f'{where}: expected a whole number above 0, got {value!r}; write '
            f'`{where.rpartition(" ")[2]} = 8`'
        )


def _check_size(size: Any, where: str) -> None:
    whole = isinstance(size, list) and all(isinstance(x, int) and x > 0 for x in size)
    if size is not None and not (whole and len(size) == 2):
        raise ValueError(
            f'{where}: expected height and width in pixels, got {size!r}; write '
            '`size = [512, 1024]`'
        )


def _check_factors(factors: Any, where: str) -> None:
    numbers = isinstance(factors, list) and all(
        isinstance(factor, int | float) and factor > 0 for factor in factors
    )
    if not (numbers and factors and len({*factors}) == len(factors)):
        raise ValueError(
            f'{where}: expected different numbers above 0, got {factors!r}; write '
            '`factors=[0.3, 1, 3]`'
        )


def _check_seeds(seeds: Any, where: str) -> None:
    whole = isinstance(seeds, list) and all(
        type(seed) is int and seed >= 0 for seed in seeds
    )
    if not (whole and seeds and len({*seeds}) == len(seeds)):
        raise ValueError(
            f'{where}: expected different whole numbers from 0, got {seeds!r}; write '
            '`seeds=[0, 1, 2]`'
        )
