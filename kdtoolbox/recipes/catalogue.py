"""The catalogue of methods: what each learns from, fits, costs and gained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdtoolbox.recipes.kinds import PAIRS, learned_from, pairs_of
from kdtoolbox.recipes.reading import Recipe, configs_folder, read_recipe
from kdtoolbox.recipes.results import (
    Gain,
    loss_ratios,
    own_gains,
    published_gains,
    step_ratios,
)


@dataclass(frozen=True)
class Method:
    """One method: a folder of configs/ with its recipes.

    Attributes:
        folder: The folder, such as 'pkd'.
        name: The name of the method, such as 'PKD'.
        paper: URL of the paper.
        learns_from: What its losses compare, such as 'features'.
        pairs: The kinds of pairs for which its wires exist, from `kinds.PAIRS`.
        students: The models that its recipes train, such as 'retinanet'.
        recipes: The files of its recipes that have a student.
        step_ratios: The time of a distilled step in units of the student's own, by the
            recipe of DigitScenes. Empty if not measured.
        loss_ratios: The time of its losses in units of a plain mean squared error.
            Losses on other wires than feature maps have none.
        published: Gains that papers and other toolboxes report.
        ours: Gains that we have measured on DigitScenes.
    """

    folder: str
    name: str
    paper: str
    learns_from: tuple[str, ...]
    pairs: tuple[str, ...]
    students: tuple[str, ...]
    recipes: tuple[Path, ...]
    step_ratios: Mapping[str, float]
    loss_ratios: Mapping[str, float]
    published: tuple[Gain, ...]
    ours: tuple[Gain, ...]


def methods() -> list[Method]:
    """Return all methods that have recipes, in the order of their folders.

    No model is built. Metafiles and recipes are read in about a tenth of a second.

    Raises:
        FileNotFoundError: If the folder of recipes is missing.

    Example:
        >>> pkd = next(method for method in methods() if method.folder == 'pkd')
        >>> pkd.name, pkd.learns_from
        ('PKD', ('features',))
    """
    configs = configs_folder()
    digits = _digits(configs)
    return [
        _method(path, configs, digits)
        for path in sorted(configs.glob('*/metafile.yml'))
    ]


def _method(path: Path, configs: Path, digits: Mapping[str, list[str]]) -> Method:
    metafile = _read(path)
    [collection] = metafile['Collections']
    folder = path.parent.name
    recipes = [read_recipe(file) for file in sorted(path.parent.glob('*.py'))]
    # The tokens of MasKD are trained without a student, hence without losses.
    recipes = [recipe for recipe in recipes if recipe.losses]
    pairs = set().union(*map(pairs_of, recipes))
    learned = [each for recipe in recipes for each in learned_from(recipe)]
    losses = [x['type'] for recipe in recipes for x in recipe.losses.values()]
    own = digits.get(folder, [])
    return Method(
        folder=folder,
        name=collection['Name'],
        paper=collection.get('Paper', {}).get('URL', ''),
        learns_from=tuple(dict.fromkeys(learned)),
        pairs=tuple(pair for pair in PAIRS if pair in pairs),
        students=tuple(dict.fromkeys(_students(metafile))),
        recipes=tuple(recipe.path for recipe in recipes),
        step_ratios=step_ratios(configs, own),
        loss_ratios=loss_ratios(configs, dict.fromkeys(losses)),
        published=tuple(published_gains(metafile)),
        ours=tuple(own_gains(configs, own)),
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
        folder = name if (configs / name).is_dir() else _folder_of(recipe)
        if recipe.losses:
            found.setdefault(folder, []).append(path.stem)
    return found


def _folder_of(recipe: Recipe) -> str:
    kinds = [config['type'] for config in recipe.losses.values()]
    return kinds[0].removesuffix('Loss').lower() if kinds else ''
