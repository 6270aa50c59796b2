import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def method_table() -> Any:
    spec = spec_from_file_location('method_table', ROOT / 'docs/method_table.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_every_loss_with_its_weight(method_table: Any) -> None:
    page = method_table.page()
    MODELS.import_from_location()
    losses = [
        kind
        for kind in MODELS.module_dict.values()
        if kind.__module__.startswith('kdtoolbox.losses.')
    ]
    assert len(losses) > 20
    for kind in losses:
        assert page.count(f'`{kind.__name__}` ') == 1


def test_the_page_links_every_folder_of_recipes(method_table: Any) -> None:
    page = method_table.page()
    for metafile in ROOT.glob('configs/*/metafile.yml'):
        name = metafile.parent.name
        assert f'[{name}](methods/{name}.md)' in page


def test_the_lists_of_methods_are_as_generated(method_table: Any) -> None:
    command = 'run `python docs/method_table.py`'
    assert method_table.readme() == (ROOT / 'README.md').read_text(), command
    assert method_table.index() == (ROOT / 'model-index.yml').read_text(), command


def test_the_readme_links_every_folder_of_recipes() -> None:
    readme = (ROOT / 'README.md').read_text()
    for metafile in ROOT.glob('configs/*/metafile.yml'):
        assert readme.count(f'](configs/{metafile.parent.name})') == 1


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


def test_a_paper_is_read_from_the_first_line(method_table: Any) -> None:
    module = sys.modules['kdtoolbox.losses.features.mgd']
    text, paper = method_table.title(module)
    assert text == 'Masked generative distillation (MGD)'
    assert paper == '[2205.01529](https://arxiv.org/abs/2205.01529)'


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
