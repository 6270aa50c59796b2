"""The runs of a suite, with their configs; part of tools/run_benchmark.py."""

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from suite_digest import forget_files, hash_of, missing_weights
from suite_faults import checkpoint_unit, chosen_images, fault_of
from suite_file import Row, Suite
from suite_options import arguments_of

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.inspection.reports import message_of
from kdtoolbox.runs.command_line import read_config
from kdtoolbox.runs.pair_arguments import name_of, recipe_of

SEED = 'randomness.seed'


@dataclass
class Run:
    """One training and its test.

    Attributes:
        suite: The suite.
        row: The row of the suite.
        seed: The seed.
        folder: The work dir.
        options: Its config entries.
        factor: Factor of the weights in a search, None otherwise.
        config_hash: Digest of the whole config; empty if the config cannot be made.
        iterations: Length of the training; 0 for epochs of unknown length.
        weights: Name of the checkpoint that is tested.
        template: Path of the shipped recipe that gave the numbers of the method.
        error: Why its config cannot be made or gives no score.
        missing: Which of its weights do not exist.
    """

    suite: Suite
    row: Row
    seed: int
    folder: Path
    options: dict[str, Any]
    factor: float | None = None
    config_hash: str = ''
    iterations: int = 0
    weights: str = ''
    template: str = ''
    error: str = ''
    missing: str = ''

    @property
    def obstacle(self) -> str:
        """Return why it cannot start; empty if it can."""
        return self.error or self.missing

    @property
    def key(self) -> tuple[str, float | None, int]:
        """Return what identifies its result."""
        return self.row.name, self.factor, self.seed

    @property
    def label(self) -> str:
        """Return its name for progress and errors."""
        factor = '' if self.factor is None else f', factor {self.factor:g}'
        return f'{self.row.name}{factor}, seed {self.seed}'

    @property
    def recipe(self) -> str:
        """Return the config of the training; with a method, the training makes it."""
        if not self.row.method:
            return self.row.config or self.suite.student
        pair = pair_of(self.suite, self.row)
        return str(self.folder / 'recipe' / f'{name_of(pair)}.py')

    def flags(self) -> list[str]:
        """Return the arguments of ``train.py`` that name the config."""
        if not self.row.method:
            return [self.recipe]
        pair = vars(pair_of(self.suite, self.row))
        return [
            part
            for name, value in pair.items()
            if value
            for part in (f'--{name}'.replace('_', '-'), value)
        ]

    def cfg_options(self) -> list[str]:
        """Return the config entries as arguments, for the training and the test."""
        return ['--cfg-options', *arguments_of(self.options, self.label)]


@dataclass
class Recipe:
    """The config of a row, before seeds and factors.

    Attributes:
        config: The config, or None if it cannot be made.
        options: The entries that it contains.
        template: As in `Run`.
        error: Why there is no config, or no score.
        missing: As in `Run`.
    """

    config: Config | None
    options: dict[str, Any] = field(default_factory=dict)
    template: str = ''
    error: str = ''
    missing: str = ''


def pair_of(suite: Suite, row: Row) -> Namespace:
    """Return the flags of a method's pair of models."""
    return Namespace(
        student=suite.student,
        teacher=suite.teacher.config,
        teacher_checkpoint=suite.teacher.checkpoint,
        method=row.method,
        at=row.at,
    )


def recipe_of_row(suite: Suite, row: Row, further: Mapping[str, Any]) -> Recipe:
    """Return the config of a row, made as ``train.py`` makes it.

    Args:
        suite: The suite.
        row: Its row.
        further: Config entries beside those of the suite and the row.
    """
    options = {**suite.options, **row.options, **further}
    try:
        recipe = _read_recipe(suite, row, options)
        recipe.error = fault_of(recipe.config, suite.images)
        recipe.missing = missing_weights(recipe.config)
    except Exception as error:
        # Whatever it is, it becomes a failed row, and the other rows go on.
        lines = [line.strip() for line in message_of(error).splitlines()]
        return Recipe(None, options, error=' '.join(lines))
    return recipe


def _read_recipe(suite: Suite, row: Row, options: dict[str, Any]) -> Recipe:
    if not row.method:
        config = read_config(row.config or suite.student, options)
        if 'teacher' not in config.model:
            return Recipe(config, options)
    options = {**suite.teacher.options(), **options}
    if row.config:
        return Recipe(read_config(row.config, options), options)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'recipe.py')
        text = recipe_of(pair_of(suite, row), Path(folder))
        with write_whole(path) as file:
            file.write(text.encode())
        template = text.partition('numbers of ')[2].partition('.py')[0]
        return Recipe(
            read_config(str(path), options), options, f'configs/{template}.py'
        )


def run_of(
    suite: Suite,
    row: Row,
    seed: int,
    recipe: Recipe,
    folder: Path,
    factor: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> Run:
    """Return the run of one seed.

    Args:
        suite: The suite.
        row: Its row.
        seed: The seed.
        recipe: The config of the row.
        folder: The folder of the suite's runs.
        factor: As in `Run`.
        weights: Entries for the weights of the losses.
    """
    options = {**recipe.options, **(weights or {}), SEED: seed}
    run = Run(suite, row, seed, folder / row.name, options, factor)
    run.template = recipe.template
    run.error, run.missing = recipe.error, recipe.missing
    if recipe.config is not None:
        config = Config(recipe.config.to_dict())
        config.merge_from_dict({**(weights or {}), SEED: seed})
        run.config_hash = hash_of(config, suite.gpus)
        if not run.error:
            run.iterations = _iterations(config, suite)
            run.weights = _last_weights(config)
    # A changed config gets a new folder, so no run resumes from another config's.
    run.folder /= f'seed_{seed}_{run.config_hash[:8]}'
    return run


def check_unchanged(run: Run) -> None:
    """Check that the files of a run are those with which it was planned.

    Raises:
        ValueError: If they are not: its result would be recorded as another config's.
    """
    forget_files()
    config = _read_recipe(run.suite, run.row, run.options).config
    if hash_of(config, run.suite.gpus) != run.config_hash:
        raise ValueError(
            f'{run.label}: its config or its weights have changed since this call has '
            'planned it; call again, which plans it anew'
        )


def _iterations(config: Config, suite: Suite) -> int:
    loop = config.train_cfg
    if loop.get('max_iters') or not suite.images:
        return loop.get('max_iters') or 0
    batch = suite.gpus * config.train_dataloader.batch_size
    images = min(suite.images, chosen_images(config) or suite.images)
    return loop.get('max_epochs', 0) * math.ceil(images / batch)


def _last_weights(config: Config) -> str:
    unit = checkpoint_unit(config)
    prefix = 'student_' if 'student' in config.model else ''
    return f'{prefix}{unit}_{config.train_cfg.get(f"max_{unit}s")}.pth'


def seed_major(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Yield each row and seed: all rows of the first seed, then of the second.

    So the results of an unfinished benchmark already compare the rows.
    """
    every = dict.fromkeys(seed for row in rows for seed in row.seeds)
    for seed in every:
        for row in rows:
            if seed in row.seeds:
                yield row, seed


def runs_of(suite: Suite, recipes: Mapping[str, Recipe], folder: Path) -> list[Run]:
    """Return the runs of rows, in their order.

    Args:
        suite: The suite.
        recipes: The config of each row.
        folder: The folder of the suite's runs.

    Raises:
        ValueError: If two rows are the same training.
    """
    check_different(suite, recipes)
    rows = [suite.rows[name] for name in recipes]
    return [
        run_of(suite, row, seed, recipes[row.name], folder)
        for row, seed in seed_major(rows)
    ]


def check_different(suite: Suite, recipes: Mapping[str, Recipe]) -> None:
    """Check that no two rows are the same training.

    Raises:
        ValueError: If two are.
    """
    first: dict[str, str] = {}
    for name, recipe in recipes.items():
        same = name
        if recipe.config is not None:
            same = first.setdefault(hash_of(recipe.config, suite.gpus), name)
        if same != name:
            raise ValueError(
                f'{suite.path.name}: rows: {same!r} and {name!r} are the same '
                f'training; leave out {name!r}, or give it other options'
            )
