"""Write tables of the losses, distillers and connectors from the code.

Weights, wires and papers are those of signatures, examples and docstrings.
"""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tables import sortable, table
from torch import nn

import kdtoolbox.connectors
import kdtoolbox.distillers
import kdtoolbox.losses
from kdtoolbox.losses.examples import examples_of
from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
PARITY = json.loads((ROOT / 'docs/parity.json').read_text())

MOST = 12
"""The longest list of folders that a cell of the table shows."""


def registered(package: ModuleType) -> Iterator[tuple[ModuleType, list[type]]]:
    """Yield the modules of a package that register classes, with these classes."""
    for info in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
        module = importlib.import_module(info.name)
        kinds = [
            kind
            for kind in MODELS.module_dict.values()
            if kind.__module__ == module.__name__ and issubclass(kind, nn.Module)
        ]
        if kinds:
            yield module, kinds


def recipes_of(kinds: list[type]) -> list[str]:
    """Return the folders of configs/ with a recipe that names one of the classes."""
    names = '|'.join(kind.__name__ for kind in kinds)
    pattern = re.compile(rf"type='(?:kdtoolbox\.)?(?:{names})'")
    paths = sorted(ROOT.glob('configs/*/*.py'))
    found = [path.parent.name for path in paths if pattern.search(path.read_text())]
    return sorted(set(found) - {'digits'})


def title(module: ModuleType) -> tuple[str, str]:
    """Return the title in a module's first line, and a link to its paper."""
    first = (module.__doc__ or '').strip().splitlines()[0].rstrip('.')
    found = re.search(r'(\d{4}\.\d{5})', first)
    paper = f'[{found[1]}](https://arxiv.org/abs/{found[1]})' if found else ''
    text = re.sub(r'(?:, )?(?:arXiv:?\s*)?\d{4}\.\d{5}', '', first)
    return text.replace(' ()', '').removesuffix(': its loss'), paper


def vectors(*names: str) -> list[dict[str, float]]:
    """Return the relative errors over the reference vectors of modules."""
    return [errors for case, errors in PARITY.items() if case.split('/')[0] in names]


def parity(module: ModuleType) -> str:
    """Return the largest errors of value and gradient over a module's vectors."""
    found = vectors(module.__name__.rpartition('.')[2])
    if not found:
        return ''
    largest = (max(errors[key] for errors in found) for key in ('loss', 'gradient'))
    return ' / '.join(f'{error:.0e}' for error in largest)


def wires(kind: type) -> str:
    """Return the kinds of wires that a loss takes from the student."""
    return ' or '.join(dict.fromkeys(example.student for example in examples_of(kind)))


def weight(kind: type) -> str:
    """Return the default weight of a loss."""
    return f'{inspect.signature(kind).parameters["loss_weight"].default:g}'


def linked(folders: list[str]) -> str:
    """Return links to the pages of folders."""
    if len(folders) > MOST:
        return 'most'
    return ', '.join(f'[{name}](methods/{name}.md)' for name in folders)


def losses() -> str:
    """Return the table of losses."""
    rows = [
        [
            f'`{kind.__name__}`',
            weight(kind),
            wires(kind),
            parity(module),
            linked(recipes_of([kind])),
        ]
        for module, kinds in registered(kdtoolbox.losses)
        for kind in kinds
    ]
    head = ['loss', 'weight', 'wire of the student', 'parity', 'recipes']
    return sortable(head, sorted(rows, key=lambda row: row[0].lower()))


def others() -> str:
    """Return the table of distillers and connectors."""
    rows = [
        [
            ', '.join(f'`{kind.__name__}`' for kind in kinds),
            *title(module),
            linked(recipes_of(kinds)),
        ]
        for package in (kdtoolbox.distillers, kdtoolbox.connectors)
        for module, kinds in registered(package)
    ]
    return table(['class', 'description', 'paper', 'recipes'], rows)
