"""Write the lists of methods from the code and from the metafiles.

    python docs/method_table.py

writes the list of methods in README.md and model-index.yml, which are committed. `page`
returns the page of all methods, which is written when the pages are built.
"""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import yaml
from torch import nn

import kdtoolbox.connectors
import kdtoolbox.distillers
import kdtoolbox.losses
from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.losses.examples import examples_of
from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / 'model-index.yml'
README = ROOT / 'README.md'
START = '<!-- The list down to the next comment: python docs/method_table.py -->'
END = '<!-- End of the list of methods. -->'
HEADINGS = dict(
    detection='Detection',
    segmentation='Segmentation',
    logits='Logits of pixels, RoIs or dense heads',
    features='Features of any model',
    relations='Relations between rows or positions',
)
"""The folders of the losses, in the order of the README."""

MOST = 12
"""The longest list of folders that a cell of the table shows."""
PAGE = """\
# All methods

Generated from the docstrings, signatures, examples and recipes of this version.

- *Verified*: the number of reference vectors with which the tests compare values and
  gradients. The vectors come from the authors' code, or from third-party code if there
  is none. `loops`: there are no vectors, and the tests compare with plain loops.
  *unverified*: the formula, or a part that its docstring names, could not be checked
  against the authors' own.
- *Parity*: the largest relative error of value / gradient over the vectors in float64,
  by `python tools/parity.py`.
- *Losses*: each loss with its default `loss_weight` and the kind of its student's wire.

{losses}

## Distillers and connectors

{others}
"""


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


def verification(module: ModuleType, parity: dict) -> tuple[str, str]:
    """Return how a module is verified, and its parity."""
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


def described(kind: type) -> str:
    """Return a loss class with its default weight and the kinds of its wires."""
    parameter = inspect.signature(kind).parameters['loss_weight']
    wires = ' or '.join(dict.fromkeys(x.student for x in examples_of(kind)))
    return f'`{kind.__name__}` {parameter.default:g} ({wires})'


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
            ', '.join(map(described, kinds)),
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
    head = ['method', 'paper', 'verified', 'parity', 'losses', 'recipes']
    return PAGE.format(
        losses=table(head, sorted(losses, key=lambda row: row[0].lower())),
        others=table(['class', 'description', 'paper', 'recipes'], others),
    )


def index() -> str:
    """Return model-index.yml: mmengine and mim read the metafiles that it lists."""
    files = sorted(path.relative_to(ROOT) for path in ROOT.glob('configs/*/*.yml'))
    return '\n'.join(['Import:', *(f'  - {path.as_posix()}' for path in files), ''])


def folder_of(metafile: dict) -> str:
    """Return the folder of losses to which a method belongs, by its metafile."""
    folder = Path(metafile['Collections'][0]['Code']).parent.name
    if folder in ('distillers', 'sources'):
        task = metafile['Models'][0]['Results'][0]['Task']
        return 'detection' if task == 'Object Detection' else 'segmentation'
    return 'features' if folder == 'connectors' else folder


def method_list() -> str:
    """Return the README's list: for each folder of losses the methods with recipes."""
    methods: dict[str, list[str]] = {folder: [] for folder in HEADINGS}
    for path in ROOT.glob('configs/*/metafile.yml'):
        metafile = yaml.safe_load(path.read_text())
        name, code = (metafile['Collections'][0][key] for key in ('Name', 'Code'))
        if 'Unverified' in (ROOT / code).read_text():
            name = f'*{name}*'
        methods[folder_of(metafile)].append(f'  [{name}](configs/{path.parent.name})')
    for names in methods.values():
        names.sort(key=lambda name: name.replace('*', '').lower())
    return '\n'.join(
        f'- **{heading}:**\n' + ',\n'.join(methods[folder])
        for folder, heading in HEADINGS.items()
    )


def readme() -> str:
    """Return README.md with the present list of methods."""
    before, start, rest = README.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f'README.md: the lines {START!r} and {END!r} are missing')
    return f'{before}{start}\n\n{method_list()}\n\n{end}{after}'


def main() -> None:
    for path, text in ((README, readme()), (INDEX, index())):
        with write_whole(path) as file:
            file.write(text.encode())


if __name__ == '__main__':
    main()
