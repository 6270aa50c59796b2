"""What a step of each row costs; part of tools/run_benchmark.py."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_report import commit
from jobs import ROOT, console
from mmengine.config import Config
from suite_file import Row, Suite
from suite_plan import Recipe

from kdtoolbox.checkpoints.writing import write_whole

Costs = dict[str, dict[str, Any]]


def read_costs(path: Path) -> Costs:
    """Return what was measured, by the name of the row; empty without a file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        costs = json.loads(path.read_text()) if path.exists() else {}
        broken = [k for k, cost in costs.items() if not {'cost', 'size'} <= {*cost}]
        if broken:
            raise ValueError(f'{broken[0]!r} has no cost or no size')
        return costs
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{path}: expected the costs of a benchmark as JSON, but {error!r}; take '
            f'the last good one, `git checkout {path.name}`, or remove it and call '
            '--cost'
        ) from error


def costs_of(suite: Suite, path: Path) -> dict[str, float]:
    """Return the costs that were measured with the method, layer and size of today."""
    return {
        name: cost['cost']
        for name, cost in read_costs(path).items()
        if name in suite.rows
        and cost.get('trains') == _trains(suite.rows[name])
        and suite.size in (None, cost['size'])
    }


def _trains(row: Row) -> str | None:
    where = f' at {row.at}' if row.at else ''
    return (
        f'{row.method}{where}' if row.method else row.config and Path(row.config).name
    )


def measure_costs(suite: Suite, recipes: Mapping[str, Recipe], path: Path) -> list[str]:
    """Measure a step of each distillation and of its student alone, in turn.

    Args:
        suite: The suite.
        recipes: The recipes by row.
        path: The file, which gets each row as it comes.

    Returns:
        A line for each row that could not be measured.
    """
    failures = []
    for name, recipe in recipes.items():
        model = {} if recipe.config is None else recipe.config.model
        if 'student' not in model and not recipe.error:
            continue
        console.print(f'measure a step of {name} ...')
        failure = recipe.error or _measure(suite, name, recipe.config, path)
        if failure:
            failures.append(f'{name}: {failure}')
    return failures


def _measure(suite: Suite, name: str, config: Config, path: Path) -> str:
    """Write the cost of a row; return why it could not be measured."""
    config = Config(config.to_dict())
    # What the method costs is with a teacher that runs.
    config.model.get('teacher', {}).pop('cache', None)
    with TemporaryDirectory() as folder:
        recipe, found = Path(folder, 'recipe.py'), Path(folder, 'cost.json')
        config.dump(recipe)
        batch = config.train_dataloader.batch_size
        command = [sys.executable, str(ROOT / 'tools/benchmark.py'), 'step']
        command += [str(recipe), f'--batch={batch}', *_where()]
        command += ['--size', *map(str, suite.size)] if suite.size else []
        done = subprocess.run(
            [*command, f'--json={found}'], capture_output=True, text=True
        )
        if done.returncode:
            told = (done.stderr or done.stdout).strip().splitlines()
            return told[-1] if told else f'it ended with status {done.returncode}'
        figures = json.loads(found.read_text())
    costs = read_costs(path)
    costs[name] = dict(
        cost=round(figures['vs_student'], 3),
        trains=_trains(suite.rows[name]),
        student_step=round(figures['student_step'], 5),
        distill_step=round(figures['distill_step'], 5),
        size=figures['size'],
        batch=batch,
        device=figures['device'],
        commit=commit(),
    )
    lines = ',\n'.join(f'"{row}": {json.dumps(costs[row])}' for row in sorted(costs))
    with write_whole(path) as file:
        file.write(f'{{\n{lines}\n}}\n'.encode())
    return ''


def _where() -> list[str]:
    """Return the flags for the GPU, or else for one core of a busy machine."""
    if torch.cuda.is_available():
        return ['--device=cuda']
    return ['--clock=cpu', '--threads=1']
