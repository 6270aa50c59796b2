"""The suites of configs/benchmarks: what they say, and their dry runs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
# The tool imports its parts from its own folder.
sys.path.append(str(ROOT / 'tools'))

import run_benchmark  # noqa: E402
import suite_expected  # noqa: E402
import suite_file  # noqa: E402
import suite_needs  # noqa: E402
import suite_plan  # noqa: E402

from kdtoolbox.configuration import load_config  # noqa: E402
from kdtoolbox.recipes.making import published_weights  # noqa: E402

SHIPPED = sorted((ROOT / 'configs/benchmarks').glob('*.py'))
LARGE = ('coco_gfl', 'coco_frcnn', 'cityscapes_pspnet')
"""The suites for several GPUs."""
PSPNET = 'pspnet_r101_pspnet_r18_80k_cityscapes-512x1024'


def read(name: str) -> suite_file.Suite:
    return suite_file.read_suite(ROOT / f'configs/benchmarks/{name}.py')


def models_of(row: suite_file.Row) -> Iterator[tuple[dict, str]]:
    """Yield each model of the metafile of a row's method, with its arXiv id."""
    folder = row.method or Path(row.config or 'student/alone').parent.name
    path = ROOT / f'configs/{folder}/metafile.yml'
    if not path.exists():
        return
    metafile = yaml.safe_load(path.read_text())
    for model in metafile['Models']:
        [url] = [
            one['Paper']['URL']
            for one in metafile['Collections']
            if one['Name'] == model['In Collection']
        ]
        yield model, url.rpartition('/')[2]


def scores_of(suite: suite_file.Suite, row: suite_file.Row) -> Iterator[tuple]:
    """Yield the score, source and student of each published run of a row's pair."""
    for model, arxiv in models_of(row):
        data = model['Metadata']
        # A stage without labels names no student.
        pair = tuple(data.get(x, {}).get('Config') for x in ('Student', 'Teacher'))
        if pair == (suite.student, suite.teacher.config):
            for result in model['Results']:
                for metric, score in result['Metrics'].items():
                    source = f'{result["Source"]}, arXiv {arxiv}'
                    yield score, source, data['Student']['Metrics'][metric]


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_a_suite_reads_and_publishes_the_numbers_of_the_metafiles(path: Path) -> None:
    suite = suite_file.read_suite(path)
    known = {name: [*scores_of(suite, row)] for name, row in suite.rows.items()}
    for name, paper in suite.published.items():
        students = {
            s: alone for s, source, alone in known[name] if source == paper.source
        }
        assert paper.distilled in students, name
        if paper.student != students[paper.distilled]:
            # The baseline of the paper, which differs from that of the model zoo.
            row = suite.rows[name]
            readme = (ROOT / f'configs/{row.method}/README.md').read_text()
            assert re.search(rf'\b{re.escape(str(paper.student))}\b', readme), name
    every = {score for scores in known.values() for score, *_ in scores}
    assert {paper.distilled for paper in suite.published.values()} == every


@pytest.mark.parametrize('name', LARGE)
def test_a_large_suite_trains_by_the_schedule_of_its_config(name: str) -> None:
    suite = read(name)
    assert published_weights(suite.teacher.config).startswith('https://')
    config = load_config(suite.student)
    each = config.train_dataloader.batch_size
    if suite.data == 'coco':
        assert suite.gpus * each == config.auto_scale_lr.base_batch_size == 16
        rate = 0.01 if 'gfl' in name else 0.02
        length = '12 epochs'
        # Also in docs/performance.md.
        assert suite_plan._iterations(config, suite) == 87960
    else:
        assert f'_{suite.gpus}xb{each}-80k_' in suite.student
        rate, length = 0.01, '80000 iterations'
    assert suite_needs.schedule_of(config, suite.gpus) == (
        f'{suite.gpus * each} images a step ({suite.gpus} GPUs with 2 each), SGD with '
        f'learning rate {rate}, {length}'
    )


def test_missing_gpus_and_another_batch_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = read('coco_gfl')
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert 'each run takes 8, and this machine has 2' in suite_needs.missing_gpus(suite)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 8)
    assert suite_needs.missing_gpus(suite) == ''
    config = Config(dict(load_config(suite.student)))
    assert suite_needs.wrong_batch(suite, config) == ''
    suite.gpus = 4
    told = suite_needs.wrong_batch(suite, config)
    assert 'is for 16 images a step, and a step has 8' in told


def test_missing_data_are_told_and_digits_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = read('coco_gfl')
    told = f'{tmp_path}/data/coco, and it does not exist; link it: `ln -s /path/to/coco'
    assert told in suite_needs.missing_data(suite)
    with pytest.raises(ValueError, match='link it'):
        run_benchmark.prepare(suite, local=False)
    (tmp_path / 'data/coco').mkdir(parents=True)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='expected the command srun'):
        run_benchmark.prepare(suite, local=False)
    for name in ('digits_det', 'digits_seg_tuning', None):
        suite.data = name
        assert suite_needs.missing_data(suite) == ''
    suite.data = 'digits_own'
    assert suite_needs.missing_data(suite)
    (tmp_path / 'data/digits_own').mkdir()
    assert suite_needs.missing_data(suite) == ''


def test_the_time_follows_from_a_step_of_the_student() -> None:
    suite = read('coco_gfl')

    def run_of(row: str, template: str = '') -> suite_plan.Run:
        run = suite_plan.Run(suite, suite.rows[row], 0, Path('work'), {}, iterations=10)
        run.template = template
        return run

    alone, unknown = run_of('student'), run_of('at')
    crosskd = run_of(
        'crosskd', 'configs/crosskd/crosskd_head_gfl_r101_gfl_r50_1x_coco.py'
    )
    runs = [alone, crosskd, unknown]
    expected = suite_expected.Expected([])
    assert [expected.step(run) for run in runs] == [None] * 3
    ratio = expected.ratio(crosskd)
    assert ratio > 1
    assert (expected.ratio(alone), expected.ratio(unknown)) == (1.0, None)
    places, formula = expected.notes(runs)
    assert 'images of 128 x 192' in places
    assert '--student-step' in formula
    expected = suite_expected.Expected([], student_step=0.5)
    assert [expected.run(run) for run in runs] == [5.0, 5.0 * ratio, None]
    assert len(expected.notes(runs)) == 1
    pspnet = read('cityscapes_pspnet')
    run = suite_plan.Run(pspnet, pspnet.rows['cwd'], 0, Path('work'), {})
    run.template = f'configs/cwd/cwd_logits_{PSPNET}.py'
    assert expected.ratio(run) > 2
    # What was measured comes before what was given.
    row = dict(row='student', status='failed', seconds_per_iteration=2.0)
    expected = suite_expected.Expected([row], student_step=0.5)
    assert expected.step(crosskd) == 2.0 * ratio


DET = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        depth=18, base_channels=8, stem_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
{head})
"""
GFL_HEAD = '    bbox_head=dict(in_channels=16, feat_channels=32, stacked_convs=4)'
RCNN_HEAD = """
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32))
"""
SEG = """
_base_ = '{base}'
model = dict(
    pretrained=None,
    backbone=dict(depth=18, base_channels=8, stem_channels=8),
    decode_head=dict(in_channels=64, channels={channels}),
    auxiliary_head=dict(in_channels=32, channels=8))
"""


def small(source: str, role: str, folder: Path) -> str:
    """Write a small model of the same kind beside a copy of the suite."""
    if source.startswith('mmseg'):
        text = SEG.format(base=source, channels=16 if role == 'student' else 32)
    else:
        head = GFL_HEAD if 'gfl' in source else RCNN_HEAD
        text = DET.format(base=source, head=head)
    path = folder / f'{role}.py'
    path.write_text(text)
    return path.name


def dry_run(folder: Path, suite: Path | str, *flags: str) -> str:
    tool = [sys.executable, str(ROOT / 'tools/run_benchmark.py'), str(suite)]
    done = subprocess.run(
        [*tool, '--work-dir', 'work', '--dry-run', *flags],
        cwd=folder,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', COLUMNS='200'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('name', 'rows'),
    [
        ('coco_gfl', ['student', 'ld']),
        ('coco_frcnn', ['student', 'response', 'dkd', 'defeat', 'fcfd']),
        ('cityscapes_pspnet', ['student', 'bpkd']),
    ],
)
def test_the_dry_run_plans_rows_of_a_suite_on_small_models(
    name: str, rows: list[str], tmp_path: Path
) -> None:
    suite = read(name)
    text = suite.path.read_text()
    for role, source in (('student', suite.student), ('teacher', suite.teacher.config)):
        text = text.replace(source, small(source, role, tmp_path))
    # Whole recipes are for the large models alone; test_configs.py has them.
    text = re.sub(r"config='\.\./[^']*'", '', text)
    url = published_weights(suite.teacher.config)
    own = "config='teacher.py'"
    text = text.replace(own, f'{own}, checkpoint={url!r}')
    (tmp_path / 'small.py').write_text(text)
    shown = dry_run(tmp_path, 'small.py', '--rows', *rows)
    for row in rows:
        assert re.search(rf'{row} +. +{len(suite.seeds)} ', shown), shown
    assert f'{len(rows) * len(suite.seeds)} runs' in shown
    assert 'each run: ' in shown
    assert f'link it: `ln -s /path/to/{suite.data}' in shown
    assert url in shown
    assert not (tmp_path / 'work').exists()


@pytest.mark.e2e
def test_the_dry_run_of_a_shipped_file_computes_the_time(tmp_path: Path) -> None:
    shown = dry_run(
        tmp_path,
        ROOT / 'configs/benchmarks/cityscapes_pspnet.py',
        *('--rows', 'student', '--student-step', '0.225'),
    )
    # 80,000 times 0.225 s.
    assert re.search(r'student .* 80000 .* 1\.00 .* 5:00 h', shown), shown
    assert 'each run: 8 images a step (4 GPUs with 2 each)' in shown


@pytest.mark.e2e
def test_the_dry_run_needs_nothing_when_all_is_done(tmp_path: Path) -> None:
    path = ROOT / 'configs/benchmarks/digits_det.py'
    shown = dry_run(tmp_path, path, '--rows', 'pretrained')
    assert '0 runs' in shown
    assert 'before the first run' not in shown


def test_a_search_of_a_row_without_a_method_is_refused() -> None:
    args = SimpleNamespace(rows=['ld_cwd'], seeds=None, tune=True, factors=None)
    with pytest.raises(ValueError, match="leave out 'ld_cwd'"):
        run_benchmark.read(args, ROOT / 'configs/benchmarks/digits_det.py')
