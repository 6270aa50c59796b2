"""Write the pages of the methods: one for all, one per family, one per method."""

import os
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import class_table
from method_table import HEADINGS, ROOT, families, metafiles, name_of
from tables import sortable

from kdtoolbox.recipes.catalogue import methods
from kdtoolbox.recipes.kinds import PAIRS
from kdtoolbox.recipes.method import Method

DOCS = ROOT / 'docs'
TASKS = {
    'Object Detection': 'boxes',
    'Instance Segmentation': 'instances',
    'Semantic Segmentation': 'segmentation',
}
YEARS = {
    'https://openreview.net/forum?id=uKhGRvM8QNH': '2021',
    'https://papers.nips.cc/paper/6676-learning-efficient-object-detection-models-with-'
    'knowledge-distillation': '2017',
}
"""The years of papers that their addresses do not contain."""

PAGE = """\
# All methods

Click a heading to sort the table. A name leads to the page of the method, a year to its
paper, a number of recipes to their results.

{methods}

- *Compares*: what the losses compare. *Fits*: the pairs for which `tools/new_config.py`
  writes a recipe; `any` needs maps only.
- *Verified*: the number of reference vectors with which the tests compare values and
  gradients. The vectors come from the authors' code, or from third-party code if there
  is none. `loops`: there are no vectors, and the tests compare with plain loops.
- Names in *italics* are unverified: the formula, or a part that its docstring names,
  could not be checked against the authors' own.

[Which method for which pair](choosing.md) helps to choose. The [model zoo](zoo.md) has
all recipes with their scores.

## Losses

Each loss with its default `loss_weight` and the kind of its student's wire. *Parity* is
the largest relative error of value / gradient over the reference vectors in float64, by
`python tools/parity.py`.

{losses}

## Distillers and connectors

{others}

```{{toctree}}
:hidden:

{families}
```
"""
FAMILY = """\
# {heading}

{methods}

[All methods](../all_methods.md) compares them.

```{{toctree}}
:hidden:

{pages}
```
"""


@cache
def catalogue() -> dict[str, Method]:
    """Return the methods of the catalogue by their folders."""
    return {method.folder: method for method in methods()}


def paper_of(folder: str) -> str:
    """Return a link to the paper of a method; its text is the year."""
    url = metafiles()[folder]['Collections'][0]['Paper']['URL']
    arxiv = re.search(r'arxiv\.org/abs/(\d\d)', url)
    year = f'20{arxiv[1]}' if arxiv else YEARS.get(url) or re.findall(r'20\d\d', url)[0]
    return f'[{year}]({url})'


def verified(folder: str) -> str:
    """Return the number of reference vectors of a method, or 'loops'."""
    module = Path(metafiles()[folder]['Collections'][0]['Code']).stem
    return str(len(class_table.vectors(folder, module)) or 'loops')


def tasks_of(folder: str) -> str:
    """Return the tasks of a method's recipes."""
    results = [model['Results'][0] for model in metafiles()[folder]['Models']]
    found = dict.fromkeys(TASKS[result['Task']] for result in results)
    return ', '.join(found)


def needs(folder: str) -> list[str]:
    """Return what the losses of a method compare, and the pairs that it fits."""
    method = catalogue().get(folder)
    if method is None:
        return ['features', 'any']
    pairs = 'any' if method.pairs == PAIRS else ', '.join(method.pairs)
    return [', '.join(method.learns_from), pairs]


def row(family: str, folder: str) -> list[str]:
    """Return the row of a method in the table of all."""
    metafile = metafiles()[folder]
    return [
        f'[{name_of(metafile)}](methods/{folder}.md)',
        family,
        paper_of(folder),
        tasks_of(folder),
        *needs(folder),
        verified(folder),
        f'[{len(metafile["Models"])}](methods/{folder}.md#results)',
    ]


def all_methods() -> str:
    """Return the page of all methods."""
    header = 'method', 'family', 'paper', 'recipes for', 'compares', 'fits'
    rows = [row(family, name) for family, names in families().items() for name in names]
    return PAGE.format(
        methods=sortable([*header, 'verified', 'recipes'], rows),
        losses=class_table.losses(),
        others=class_table.others(),
        families='\n'.join(f'{x.capitalize()} <families/{x}>' for x in HEADINGS),
    )


def family(folder: str, names: Iterable[str]) -> str:
    """Return the page of a family: its methods with the titles of their papers."""
    metafile = metafiles()
    lines = [
        f'- [{name_of(metafile[name])}](../methods/{name}.md): '
        f'{metafile[name]["Collections"][0]["Paper"]["Title"]}, {paper_of(name)}'
        for name in names
    ]
    pages = [
        f'{name_of(metafile[name]).strip("*")} <../methods/{name}>' for name in names
    ]
    return FAMILY.format(
        heading=HEADINGS[folder], methods='\n'.join(lines), pages='\n'.join(pages)
    )


def readme_of(folder: Path) -> str:
    """Return a method's README with its links, from the folder of the pages."""

    def moved(match: re.Match[str]) -> str:
        return f']({os.path.relpath(folder / match[1], DOCS / "methods")}'

    text = (folder / 'README.md').read_text(encoding='utf-8')
    return re.sub(r'\]\((?!https?:|#)([^)#]+)', moved, text)


def write() -> None:
    """Write all pages of methods."""
    for name in ('methods', 'families'):
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    for path in sorted(ROOT.glob('configs/*/README.md')):
        folder = path.parent
        (DOCS / f'methods/{folder.name}.md').write_text(readme_of(folder), 'utf-8')
    for name, members in families().items():
        (DOCS / f'families/{name}.md').write_text(family(name, members), 'utf-8')
    (DOCS / 'all_methods.md').write_text(all_methods(), 'utf-8')
