"""The facts of the guides that come from code, metafiles and measurements."""

import inspect
import json
import re
from pathlib import Path

import pytest

from kdtoolbox.losses.examples import examples_of, loss_classes
from kdtoolbox.recipes.catalogue import methods
from kdtoolbox.recipes.method import Method
from kdtoolbox.recipes.results import BENCHMARKS, benchmark_rows

ROOT = Path(__file__).resolve().parents[1]
CHOOSING = (ROOT / 'docs/choosing.md').read_text()
WHEN_NOT = (ROOT / 'docs/when-not.md').read_text()


@pytest.fixture(scope='module')
def found() -> dict[str, Method]:
    return {method.folder: method for method in methods()}


def rows(text: str, columns: int) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [row for row in cells if len(row) == columns]


def losses_of(teacher: str) -> set[str]:
    """Return the losses on maps whose teacher's map is of a kind."""
    return {
        name
        for name, kind in loss_classes().items()
        for example in examples_of(kind)
        if (example.student, example.names['teacher']) == ('map', teacher)
    }


@pytest.mark.parametrize(
    ('phrase', 'teacher', 'unlisted'),
    [
        ('**channels may differ**', 'map of other channels', set()),
        # Its two ends of a block have further sizes and channels.
        ('**size may differ**', 'map of other size', {'FSPLoss'}),
        (
            '**channels and size may differ**',
            'map of other channels and size',
            set(),
        ),
    ],
)
def test_shapes_that_losses_accept(
    phrase: str, teacher: str, unlisted: set[str]
) -> None:
    [cell] = [row[1] for row in rows(CHOOSING, 2) if phrase in row[0]]
    assert set(re.findall(r'`(\w+Loss)`', cell)) == losses_of(teacher) - unlisted


def test_losses_on_targets() -> None:
    [cell] = [row[1] for row in rows(CHOOSING, 2) if row[0].startswith('the targets')]
    listed = set(re.findall(r'`(\w+Loss)`', cell))
    read = {
        name
        for name, kind in loss_classes().items()
        if 'targets' in inspect.signature(kind.forward).parameters
    }
    assert listed == read


def test_costs_of_losses() -> None:
    costs = json.loads((ROOT / 'configs/costs.json').read_text())
    ratios = costs['losses']['values']
    [text] = re.findall(r'The expensive ones are (.*?)\.', CHOOSING, re.DOTALL)
    named = {int(number) for number in re.findall(r'\((\d+)\)', text)}
    assert named == {round(ratio) for ratio in ratios.values() if ratio > 12}
    assert sum(ratio < 4 for ratio in ratios.values()) > len(ratios) / 2
    steps = sorted(
        float(row['cost'])
        for suite in BENCHMARKS
        for row in benchmark_rows(ROOT / 'configs', suite)
        if row['cost'] and float(row['cost']) > 1
    )
    assert f'{steps[0]:.1f} to {steps[-2]:.1f}\n  times' in CHOOSING
    assert f'{steps[-1]:.1f} times with GID' in CHOOSING


def test_published_scores(found: dict[str, Method]) -> None:
    shown = {
        (folder, gain.student, gain.distilled)
        for folder, method in found.items()
        for gain in method.published
    }
    retina = [row[:2] for row in rows(CHOOSING, 5) if row[-1] in ('paper', 'mmrazor')]
    assert len(retina) == 3
    for name, score in [*retina, ('CWD', '40.5')]:
        assert (name.lower(), 37.4, float(score)) in shown
    gfl = [row for row in rows(CHOOSING, 3) if re.fullmatch(r'4\d\.\d', row[1])]
    assert len(gfl) == 5
    for name, score, _ in gfl:
        assert (name.split()[0].lower(), 40.2, float(score)) in shown
    for fact in (('pkd', 37.4, 41.5), ('crosskd', 39.4, 41.8), ('crosskd', 36.5, 38.0)):
        assert fact in shown
        assert str(fact[2]) in WHEN_NOT


@pytest.mark.parametrize('text', [CHOOSING, WHEN_NOT], ids=['choosing', 'when-not'])
def test_links_lead_somewhere(text: str) -> None:
    links = [x for x in re.findall(r'\]\(([^)#]+)\)', text) if '://' not in x]
    assert len(links) > 5
    for link in links:
        assert (ROOT / 'docs' / link).exists(), link
