"""The page that lists all methods, from the code's own metadata."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

import kdtoolbox.connectors
import kdtoolbox.distillers
import kdtoolbox.losses
from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
MOST = 12
"""Folders beyond which a list of them says nothing."""
PAGE = """\
# All methods

Made from the docstrings, signatures and recipes of this version when the pages are
built.

*Verified*: how many reference vectors a method meets, values and gradients that the
authors' code gave, or a third-party one where there is none; `loops`: no vectors are
known, and the tests compare with plain loops. *unverified*: the formula, or a part that
its docstring names, could not be checked against the authors' own. *Parity*: the
largest relative error of value / gradient over the vectors in float64, by `python
tools/parity.py`. *Weight*: the default `loss_weight`.

{losses}

## Distillers and connectors

{others}
"""


def registered(package: ModuleType) -> Iterator[tuple[ModuleType, list[type]]]:
    """Yield the modules of a package that register classes, with these."""
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
    """Return the folders under configs/ whose recipes name one of the classes."""
    names = '|'.join(kind.__name__ for kind in kinds)
    pattern = re.compile(rf"type='(?:kdtoolbox\.)?(?:{names})'")
    paths = sorted(ROOT.glob('configs/*/*.py'))
    found = [path.parent.name for path in paths if pattern.search(path.read_text())]
    return sorted(set(found) - {'digits'})


def title(module: ModuleType) -> tuple[str, str]:
    """Return what a module's first line says, and its paper."""
    first = (module.__doc__ or '').strip().splitlines()[0].rstrip('.')
    found = re.search(r'(\d{4}\.\d{5})', first)
    paper = f'[{found[1]}](https://arxiv.org/abs/{found[1]})' if found else ''
    text = re.sub(r'(?:, )?(?:arXiv:?\s*)?\d{4}\.\d{5}', '', first)
    return text.replace(' ()', '').removesuffix(': its loss'), paper


def verification(module: ModuleType, parity: dict) -> tuple[str, str]:
    """Return what a module is verified by, and its parity."""
    name = module.__name__.rpartition('.')[2]
    cases = [errors for case, errors in parity.items() if case.split('/')[0] == name]
    count = f'{len(cases)} vector{"s" * (len(cases) > 1)}'
    words = [count if cases else 'loops']
    if 'Unverified' in inspect.getsource(module):
        words.append('*unverified*')
    if not cases:
        return ', '.join(words), ''
    largest = (max(errors[key] for errors in cases) for key in ('loss', 'gradient'))
    return ', '.join(words), ' / '.join(f'{error:.0e}' for error in largest)


def default_weight(kind: type) -> str:
    """Return a loss class with its default weight."""
    parameter = inspect.signature(kind).parameters['loss_weight']
    return f'`{kind.__name__}` {parameter.default:g}'


def linked(folders: list[str]) -> str:
    """Return links to the pages of folders."""
    if len(folders) > MOST:
        return 'most'
    return ', '.join(f'[{name}](methods/{name}.md)' for name in folders)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def page() -> str:
    """Return the page."""
    parity = json.loads((ROOT / 'docs/parity.json').read_text())
    losses = [
        [
            *title(module),
            *verification(module, parity),
            ', '.join(map(default_weight, kinds)),
            linked(recipes_of(kinds)),
        ]
        for module, kinds in registered(kdtoolbox.losses)
    ]
    others = [
        [
            ', '.join(f'`{kind.__name__}`' for kind in kinds),
            *title(module),
            linked(recipes_of(kinds)),
        ]
        for package in (kdtoolbox.distillers, kdtoolbox.connectors)
        for module, kinds in registered(package)
    ]
    head = ['method', 'paper', 'verified', 'parity', 'weight', 'recipes']
    return PAGE.format(
        losses=table(head, sorted(losses, key=lambda row: row[0].lower())),
        others=table(['class', 'what it is', 'paper', 'recipes'], others),
    )
