"""The catalogue of methods: what each learns from, fits, costs and gained."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kdtoolbox.recipes.kinds import PAIRS, learned_from, pairs_of
from kdtoolbox.recipes.method import Method
from kdtoolbox.recipes.reading import Recipe, read_recipe
from kdtoolbox.recipes.results import (
    loss_ratios,
    own_gains,
    published_gains,
    step_ratios,
)
from kdtoolbox.recipes.table import CAPTION, table_of
from kdtoolbox.recipes.templates import folder


def methods() -> list[Method]:
    """Return all methods that have recipes, in the order of their folders.

    No model is built. Metafiles and recipes are read in about a tenth of a second.

    Example:
        >>> pkd = next(method for method in methods() if method.folder == 'pkd')
        >>> pkd.name, pkd.learns_from
        ('PKD', ('features',))
    """
    configs = folder()
    digits = _digits(configs)
    return [
        _method(path, configs, digits)
        for path in sorted(configs.glob('*/metafile.yml'))
        # Its recipes are stages of a training and no methods.
        if path.parent.name != 'pretrain'
    ]


def print_methods(console: Console) -> None:
    """Print one row for each method, and what the columns mean.

    Args:
        console: Where to print.
    """
    console.print(table_of(methods()))
    console.print(CAPTION, highlight=False, end='')


def _method(path: Path, configs: Path, digits: Mapping[str, list[str]]) -> Method:
    metafile = _read(path)
    [collection] = metafile['Collections']
    name = path.parent.name
    recipes = [read_recipe(file) for file in sorted(path.parent.glob('*.py'))]
    # The tokens of MasKD are trained without a student, hence without losses.
    recipes = [recipe for recipe in recipes if recipe.losses]
    pairs = set().union(*map(pairs_of, recipes))
    learned = [each for recipe in recipes for each in learned_from(recipe)]
    losses = [x['type'] for recipe in recipes for x in recipe.losses.values()]
    own = digits.get(name, [])
    return Method(
        folder=name,
        name=collection['Name'],
        paper=collection.get('Paper', {}).get('URL', ''),
        learns_from=tuple(dict.fromkeys(learned)),
        pairs=tuple(pair for pair in PAIRS if pair in pairs),
        students=tuple(dict.fromkeys(_students(metafile))),
        recipes=tuple(recipe.path for recipe in recipes),
        step_ratios=step_ratios(configs, own),
        loss_ratios=loss_ratios(configs, dict.fromkeys(losses)),
        published=tuple(published_gains(metafile)),
        ours=tuple(own_gains(configs, name)),
    )


def _read(path: Path) -> dict[str, Any]:
    # The loader in C is ten times as fast; a PyYAML without libyaml lacks it.
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    return yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 - a safe loader


def _students(metafile: Mapping[str, Any]) -> Iterable[str]:
    for model in metafile['Models']:
        config = model['Metadata'].get('Student', {}).get('Config')
        if config:
            path = Path(config.rpartition('::')[2])
            # Our own students are files such as students/gfl_r18_fpn_1x_coco.py.
            ours = path.parent.name == 'students'
            name = path.stem.partition('_r')[0] if ours else path.parent.name
            yield name.replace('-', '_')


def _digits(configs: Path) -> dict[str, list[str]]:
    """Return the recipes of DigitScenes of each method, by their names or losses."""
    found: dict[str, list[str]] = {}
    for path in sorted((configs / 'digits').glob('*.py')):
        recipe = read_recipe(path)
        name = path.stem.partition('_')[2]
        method = name if (configs / name).is_dir() else _method_of(recipe)
        if recipe.losses:
            found.setdefault(method, []).append(path.stem)
    return found


def _method_of(recipe: Recipe) -> str:
    kinds = [config['type'] for config in recipe.losses.values()]
    return kinds[0].removesuffix('Loss').lower() if kinds else ''
