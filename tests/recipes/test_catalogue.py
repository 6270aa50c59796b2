import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kdtoolbox.configuration import load_config
from kdtoolbox.distillers import Source
from kdtoolbox.losses.examples import KINDS, loss_classes
from kdtoolbox.recipes import kinds
from kdtoolbox.recipes.catalogue import methods, print_methods
from kdtoolbox.recipes.method import Method
from kdtoolbox.recipes.reading import read_recipe
from kdtoolbox.recipes.results import Gain
from kdtoolbox.recipes.templates import templates_of
from kdtoolbox.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs/digits'


@pytest.fixture(scope='module')
def found() -> dict[str, Method]:
    return {method.folder: method for method in methods()}


def test_every_folder_of_recipes_is_a_method(found: dict[str, Method]) -> None:
    folders = {path.parent.name for path in ROOT.glob('configs/*/*.py')}
    assert found.keys() == folders - {'benchmarks', 'digits', 'pretrain', 'students'}
    for method in found.values():
        assert method.learns_from, method.folder
        assert method.pairs, method.folder
        assert method.students, method.folder


@pytest.mark.parametrize(
    ('folder', 'learned', 'pairs'),
    [
        ('pkd', ('features',), kinds.PAIRS),
        ('fgd', ('features',), kinds.DETECTORS),
        ('fgfi', ('features',), ('dense head',)),
        ('ld', ('box distributions', 'class logits'), ('dense head',)),
        ('kd', ('class logits',), ('segmentor',)),
        ('dkd', ('class logits', 'class logits of RoIs'), ('two-stage', 'segmentor')),
        ('ab', ('features',), ('segmentor',)),
        ('kd_detr', ('object queries', 'features'), ('DETR',)),
        ('fakd', ('class logits',), ('segmentor',)),
        ('ifvd', ('features', 'class logits'), ('segmentor',)),
        ('mask_queries', ('mask queries',), ('Mask2Former',)),
        ('rkd', ('relations',), kinds.PAIRS),
    ],
)
def test_learned_from_and_pairs(
    found: dict[str, Method], folder: str, learned: tuple, pairs: tuple
) -> None:
    assert set(found[folder].learns_from) == set(learned)
    assert found[folder].pairs == pairs


@pytest.mark.parametrize('method', ['ab', 'dist', 'fgfi', 'ofd', 'ctkd', 'srd', 'wsld'])
def test_the_list_shows_the_pairs_that_get_a_recipe(
    found: dict[str, Method], method: str
) -> None:
    families = set().union(*(t.families() for t in templates_of(method)))
    pairs = {kinds.PAIR_OF[name] for name in families if name in kinds.PAIR_OF}
    assert {*found[method].pairs} == pairs


def test_every_kind_and_source_is_known() -> None:
    extra = {'channel margins', 'classifier weights', 'RoI labels'}
    # The kinds of a teacher's wire, and of further wires.
    teachers = {name for name in KINDS if ' of other ' in name}
    assert kinds.LEARNED.keys() == (
        KINDS.keys() - extra - teachers - {'mask class logits'}
    )
    sources = {
        name
        for name, kind in MODELS.module_dict.items()
        if isinstance(kind, type) and issubclass(kind, Source)
    }
    assert kinds.OF_SOURCE.keys() <= sources


def inherited() -> Iterator[Path]:
    """Yield recipes that inherit from others of ours."""
    yield DIGITS / 'det_pkd.py'
    yield DIGITS / 'seg_cirkd.py'
    yield ROOT / 'configs/crosskd/crosskd-pkd_head-fpn_gfl_r101_gfl_r50_1x_coco.py'
    yield from (ROOT / 'configs/kd_detr').glob('kd_detr_query-memory_*.py')


@pytest.mark.parametrize('path', list(inherited()), ids=lambda path: path.stem)
def test_a_recipe_is_read_as_mmengine_reads_it(path: Path) -> None:
    recipe, model = read_recipe(path), load_config(path).model
    assert {name: dict(loss) for name, loss in recipe.losses.items()} == {
        name: dict(loss) for name, loss in model.losses.items()
    }
    assert recipe.sources == tuple(x.type for x in model.get('sources', []))


def test_costs_are_those_of_the_pages(found: dict[str, Method]) -> None:
    costs = json.loads((ROOT / 'configs/costs.json').read_text())
    for section, page, names in (
        ('losses', 'losses.md', 'loss'),
        ('steps', 'costs.md', 'recipe'),
    ):
        text = (ROOT / 'docs' / page).read_text()
        rows = [line.strip('| ').split(' | ') for line in text.splitlines()]
        [head] = [row for row in rows if row[0] == names]
        column = head.index('× MSE' if section == 'losses' else 'ratio')
        shown = {
            re.sub(r'`(?:configs/digits/)?|\.py`', '', row[0]): row[column]
            for row in rows
            if len(row) > column
        }
        assert f'Machine: {costs[section]["machine"]}.' in text
        for name, value in costs[section]['values'].items():
            ratio = value if section == 'losses' else value['ratio']
            assert float(shown[name]) == pytest.approx(ratio, abs=0.006), name
    assert costs['losses']['values'].keys() <= loss_classes().keys()
    assert found['cwd'].step_ratios.keys() == {'det_distilled', 'seg_distilled'}
    assert found['pkd'].step_ratios['det_pkd'] > 1
    assert found['ssim'].loss_ratios == {'SSIMLoss': 22.01}


def test_published_gains_come_from_the_metafile(found: dict[str, Method]) -> None:
    gain = Gain('mIoU', 74.87, 77.57, 'Cityscapes', 'reported by AkideLiu/BPKD')
    assert found['bpkd'].published == (gain,)
    assert gain.points == 2.7
    assert not found['ab'].published
    fgd = [g.points for g in found['fgd'].published if g.metric == 'mask AP']
    assert fgd == [2.4]


def test_our_gains_are_those_of_the_benchmarks(found: dict[str, Method]) -> None:
    with (ROOT / 'configs/benchmarks/digits_det.csv').open(newline='') as file:
        rows = {row['row']: row for row in csv.DictReader(file)}
    [gain] = [gain for gain in found['cwd'].ours if gain.metric == 'box AP']
    assert gain.distilled == float(rows['cwd']['mean'])
    assert gain.points == pytest.approx(float(rows['cwd']['difference']), abs=0.01)
    assert gain.seeds == int(rows['cwd']['seeds'])
    assert not found['ssim'].ours


def test_the_table_has_a_row_for_each_method(found: dict[str, Method]) -> None:
    console = Console(width=200, record=True)
    print_methods(console)
    lines = console.export_text().splitlines()
    # A row begins behind one space, a wrapped line behind several.
    rows = {line.split()[0]: line for line in lines if re.match(r' \S', line)}
    assert found.keys() <= rows.keys()
    assert re.search(r'any +retinanet, faster_rcnn', rows['pkd'])

    assert '+2.7 mIoU' in rows['bpkd']
    # No number is made up.
    assert re.search(r'pspnet +- +- +-$', rows['ttm'].rstrip())
