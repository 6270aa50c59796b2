import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_architecture import FLOORS

from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))
GENERATED = {'all_methods.md', 'zoo.md'}
WRITTEN = [
    *ROOT.glob('*.md'),
    *(path for path in ROOT.glob('docs/*.md') if path.name not in GENERATED),
    *ROOT.glob('configs/*/README.md'),
]
"""The pages that are in the repository."""


@pytest.fixture(scope='module')
def docs() -> Iterator[Any]:
    """Import the modules beside the pages by their names."""
    sys.path.insert(0, str(ROOT / 'docs'))
    yield import_module
    sys.path.remove(str(ROOT / 'docs'))


@pytest.fixture(scope='module')
def method_table(docs: Any) -> Any:
    return docs('method_table')


@pytest.fixture(scope='module')
def page(docs: Any) -> str:
    return docs('method_pages').all_methods()


def test_the_page_lists_every_loss_with_its_weight(page: str) -> None:
    MODELS.import_from_location()
    losses = [
        kind
        for kind in MODELS.module_dict.values()
        if kind.__module__.startswith('kdtoolbox.losses.')
    ]
    assert len(losses) > 20
    for kind in losses:
        assert len(re.findall(rf'\| `{kind.__name__}` \| [\d.e+-]+ \|', page)) == 1


def test_the_page_links_every_folder_of_recipes(page: str) -> None:
    for metafile in METAFILES:
        name = metafile.parent.name
        assert re.search(rf'^\| \[[^]]+\]\(methods/{name}\.md\)', page, re.MULTILINE)


def test_every_method_is_in_one_family(docs: Any) -> None:
    pages = docs('method_pages')
    families = pages.families()
    text = ''.join(pages.family(name, families[name]) for name in families)
    for metafile in METAFILES:
        assert text.count(f'<../methods/{metafile.parent.name}>') == 1


def test_the_zoo_has_every_recipe_and_who_measured_it(docs: Any) -> None:
    rows = [x for x in docs('zoo').page().splitlines() if x.startswith('| [')]
    for recipe in re.findall(r'^    Config: (.*)', texts(METAFILES), re.M):
        assert any(f'](../{recipe})' in row for row in rows), recipe
    for row in rows:
        *_, score, _, source, _ = [cell.strip() for cell in row.split('|')]
        marked = re.match('paper|ours|reported by', source)
        assert bool(marked) == (score != '-'), row


def texts(paths: list[Path]) -> str:
    return ''.join(path.read_text() for path in paths)


def test_the_lists_of_methods_are_as_generated(method_table: Any) -> None:
    command = 'run `python docs/method_table.py`'
    assert method_table.readme() == (ROOT / 'README.md').read_text(), command
    page = (ROOT / 'docs/benchmark.md').read_text()
    assert method_table.benchmark() == page, command
    assert method_table.index() == (ROOT / 'model-index.yml').read_text(), command


def test_the_readme_links_every_folder_of_recipes(method_table: Any) -> None:
    # The tables above the list name some methods, too.
    listed = (ROOT / 'README.md').read_text().partition(method_table.START)[2]
    for metafile in ROOT.glob('configs/*/metafile.yml'):
        assert listed.count(f'](configs/{metafile.parent.name})') == 1


def test_parity_was_measured_on_the_present_vectors() -> None:
    parity = json.loads((ROOT / 'docs/parity.json').read_text())
    cases = {
        f'{path.parent.name}/{path.stem}' for path in ROOT.glob('tests/golden/*/*.npz')
    }
    assert parity.keys() <= cases
    folders = {case.split('/')[0] for case in cases}
    assert {case.split('/')[0] for case in parity} == folders
    for errors in parity.values():
        # The reference of DiffKD rounds its schedule to float32.
        assert 0 <= max(errors.values()) < 1e-6


def test_a_paper_is_read_from_the_first_line(docs: Any) -> None:
    module = sys.modules['kdtoolbox.losses.features.mgd']
    text, paper = docs('class_table').title(module)
    assert text == 'Masked generative distillation (MGD)'
    assert paper == '[2205.01529](https://arxiv.org/abs/2205.01529)'


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    prose = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r'^#+ (.*)$', prose, re.MULTILINE)
    plain = [re.sub(r'\]\([^)]*\)', '', heading).lower() for heading in headings]
    return {re.sub(r'[^\w\- ]', '', heading).replace(' ', '-') for heading in plain}


@pytest.mark.parametrize('path', WRITTEN, ids=lambda x: str(x.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r'\]\((?!https?:)([^)\s]+)\)', path.read_text()):
        target, _, anchor = link.partition('#')
        found = path.parent / target if target else path
        if found.parent == ROOT / 'docs/methods':
            found = ROOT / 'configs' / found.stem / 'README.md'
        if found.parent == ROOT / 'docs' and found.name in GENERATED:
            continue
        assert found.exists(), link
        assert not anchor or anchor in anchors_of(found), link


def test_the_picture_of_the_house_has_all_floors() -> None:
    house = (ROOT / 'docs/images/house.svg').read_text()
    floors = re.findall(r'<g class="floor">.*?</g>', house, re.DOTALL)
    names = [set(re.findall(r'<text[^>]*>(\w+)</text>', floor)) for floor in floors]
    assert names[::-1] == [*FLOORS]


def rows_of(page: str, columns: int) -> list[list[str]]:
    lines = (ROOT / 'docs' / page).read_text().splitlines()
    cells = [line.strip('|').split('|') for line in lines if line.startswith('| ')]
    rows = [[cell.strip() for cell in row] for row in cells]
    return [row for row in rows if len(row) == columns and row[0] != 'promise']


def test_every_promise_has_a_test_of_its_name() -> None:
    rows = rows_of('reliability.md', columns=3)
    assert len(rows) > 20
    for promise, path, figure in rows:
        name = re.sub(r'\W+', '_', promise.lower())
        source = (ROOT / path.strip('`')).read_text()
        assert f'\ndef test_{name}(' in source, f'{promise}: no test_{name} in {path}'
        assert figure, promise
