"""The search for the weights of a suite's methods; part of tools/run_benchmark.py."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from mmengine.config import Config
from rich.table import Table
from suite_file import Row, Suite
from suite_plan import Recipe, Run, run_of

from kdtoolbox.recipes.templates import class_of

NEAR = 0.5
"""Points that one seed cannot tell apart."""


def tuning_runs(suite: Suite, recipes: Mapping[str, Recipe], folder: Path) -> list[Run]:
    """Return the same number of runs for each method: all factors, all seeds.

    Args:
        suite: A suite with ``tuning``.
        recipes: The config of each row with a method.
        folder: The folder of the suite's runs.
    """
    return [
        run_of(
            suite,
            suite.rows[name],
            seed,
            recipe,
            folder / f'factor_{factor:g}',
            factor,
            scaled_weights(recipe.config, factor),
        )
        for seed in suite.tuning.seeds
        for factor in suite.tuning.factors
        for name, recipe in recipes.items()
    ]


def without_weights(row: Row) -> Row:
    """Return a row with the weights of its method, so that factors mean the same.

    Otherwise a second search would multiply what the first one has found.
    """
    kept = {k: v for k, v in row.options.items() if not k.endswith('.loss_weight')}
    return replace(row, options=kept)


def loss_weights(config: Config | None) -> dict[str, float]:
    """Return the weight of each loss of a distillation, by its config path."""
    losses: dict[str, Any] = {} if config is None else config.model.losses
    found = {}
    for name, loss in losses.items():
        weight = loss.get('loss_weight')
        if weight is None:
            weight = inspect.signature(class_of(loss)).parameters['loss_weight'].default
        found[f'model.losses.{name}.loss_weight'] = weight
    return found


def scaled_weights(config: Config | None, factor: float) -> dict[str, float]:
    """Return the weights times a factor, without the last digits of the product."""
    return {k: float(f'{v * factor:.6g}') for k, v in loss_weights(config).items()}


def means_of(rows: Iterable[dict]) -> dict[str, dict[float, list[float]]]:
    """Return the scores of each row by factor."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row['status'] == 'done':
            factors = found.setdefault(row['row'], {})
            factors.setdefault(row['factor'], []).append(row['score'])
    return found


def best_of(factors: dict[float, list[float]]) -> float:
    """Return the factor with the best mean; among nearly equal ones the nearest to 1.

    With a weight near 0 a method does nothing, so a draw is no reason to lower it.

    Example:
        >>> best_of({0.3: [6.4], 1: [7.0, 5.0], 3: [5.0]})
        1
    """
    best = max(mean(scores) for scores in factors.values())
    near = [f for f, scores in factors.items() if mean(scores) >= best - NEAR]
    return min(near, key=lambda f: max(f, 1 / f))


def tuning_table(suite: Suite, rows: Iterable[dict]) -> Table:
    """Return the mean score of each factor; an asterisk marks the best of a row."""
    title = f'{suite.path.stem}: {suite.metric} by factor of the weights'
    factors = suite.tuning.factors
    table = Table('row', *(f'x {factor:g}' for factor in factors), title=title)
    for name, found in means_of(rows).items():
        best = best_of(found)
        cells = [
            f'{mean(found[f]):.2f}{" *" if f == best else ""}' if f in found else ''
            for f in factors
        ]
        table.add_row(name, *cells)
    return table


def line_to_paste(suite: Suite, name: str, recipe: Recipe, factor: float) -> str:
    """Return the row with the best weights, to paste into the suite."""
    row = suite.rows[name]
    weights = scaled_weights(recipe.config, factor)
    parts = [f'method={row.method!r}']
    parts += [f'at={row.at!r}'] if row.at else []
    options = {**row.options, **weights}
    parts.append(f'options={options}')
    if row.seeds != suite.seeds:
        parts.append(f'seeds={row.seeds}')
    return f'{name}=dict({", ".join(parts)}),'
