"""The parts of tools/run_benchmark.py, without a training."""

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
# The tool imports its parts from its own folder.
sys.path.append(str(ROOT / 'tools'))

import jobs  # noqa: E402
import suite_cost  # noqa: E402
import suite_digest  # noqa: E402
import suite_expected  # noqa: E402
import suite_faults  # noqa: E402
import suite_file  # noqa: E402
import suite_needs  # noqa: E402
import suite_options  # noqa: E402
import suite_plan  # noqa: E402
import suite_plot  # noqa: E402
import suite_report  # noqa: E402
import suite_results  # noqa: E402
import suite_running  # noqa: E402
import suite_slurm  # noqa: E402
import suite_statistics  # noqa: E402
import suite_table  # noqa: E402
import suite_tuning  # noqa: E402

SUITE = f"""
student = '{ROOT}/configs/digits/seg_student.py'
teacher = dict(
    config='{ROOT}/configs/digits/seg_teacher.py',
    checkpoint='{ROOT}/configs/digits/seg_teacher.safetensors')
metric = 'mIoU'
seeds = [0, 1]
rows = dict(
    student=dict(seeds=[0, 1, 2]), cwd=dict(method='cwd', at='neck'),
    own=dict(config='own.py', seeds=[0], note='it has no data'))
published = dict(cwd=dict(student=70.0, distilled=74.5, source='paper, arXiv 1'))
tuning = dict(seeds=[7, 8], factors=[0.3, 1, 3])
"""
DISTILLED = """
model = dict(
    type='kdtoolbox.Distiller',
    losses=dict(
        loss_cwd=dict(type='CWDLoss', loss_weight=10.0), loss_kd=dict(type='KDLoss')))
train_cfg = dict(max_iters=8)
default_hooks = dict(checkpoint=dict(by_epoch=False))
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the suite with a change."""

    def write(old: str = '', new: str = '') -> Path:
        assert old in SUITE
        (tmp_path / 'own.py').write_text(DISTILLED)
        path = tmp_path / 'mine.py'
        path.write_text(SUITE.replace(old, new) if old else SUITE + new)
        return path

    return write


@pytest.fixture
def suite(write: Callable) -> suite_file.Suite:
    return suite_file.read_suite(write())


SAME = dict(metric='mIoU', scale=1.0, config_hash='same')


def result(row: str, seed: int, score: float, seconds: float = 1.0) -> dict:
    return dict(
        row=row,
        seed=seed,
        score=score,
        status='done',
        seconds_per_iteration=seconds,
        **SAME,
    )


def failed(row: str, seed: int) -> dict:
    step = dict(seconds_per_iteration=None)
    return dict(row=row, seed=seed, status='failed', reason='no disk', **step, **SAME)


def run_of(suite: suite_file.Suite, row: str, seed: int = 0, **given) -> suite_plan.Run:
    folder = suite.path.parent / 'work' / row
    return suite_plan.Run(suite, suite.rows[row], seed, folder, {}, **given)


def test_paths_are_beside_the_suite_and_shown_from_the_repository(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    assert suite.student == 'configs/digits/seg_student.py'
    assert suite.rows['own'].config == str(tmp_path / 'own.py')
    assert suite.rows['cwd'].seeds == [0, 1]
    assert suite.baseline == 'student'


def test_inherited_paths_begin_at_the_folder_of_the_base(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    heir = tmp_path / 'elsewhere/heir.py'
    heir.parent.mkdir()
    heir.write_text("_base_ = '../mine.py'\nrows = dict(far=dict(config='own.py'))\n")
    (heir.parent / 'own.py').write_text(DISTILLED)
    rows = suite_file.read_suite(heir).rows
    # Its own folder comes first.
    assert rows['far'].config == str(heir.parent / 'own.py')
    (heir.parent / 'own.py').unlink()
    rows = suite_file.read_suite(heir).rows
    assert rows['own'].config == suite.rows['own'].config


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('', 'metrics = 1', r"no 'metrics' \(did you mean 'metric'\?\)"),
        ("metric = 'mIoU'", '', "needs 'metric'"),
        ("at='neck'", "config='own.py'", r"remove `config='own.py'`"),
        ("method='cwd'", "method='cdw'", "no method 'cdw'; did you mean 'cwd'"),
        ("method='cwd', ", '', '`at` needs a method'),
        ("'own.py'", "'owm.py'", r"no file 'owm.py'; .*close: .*own.py"),
        ('student=dict(seeds=[0, 1, 2]), ', '', r'add `student=dict\(\),`'),
        ('published = dict(cwd', 'published = dict(cdw', "did you mean 'cwd'"),
        ('seeds = [0, 1]', 'seeds = [0, 0]', r'write `seeds=\[0, 1, 2\]`'),
        ('', 'options = dict(train_cfg=dict(max_iters=8))', 'one option for each'),
        ('', "options = {'model.neck': 1}", "config that inherits the student's"),
        ('student=dict(seeds=[0, 1, 2])', 'student=8', r'write `dict\(...\)`'),
        (
            "cwd=dict(method='cwd', at='neck')",
            'cwd=dict(options=8)',
            'options: expected',
        ),
        ('', "teacher['cache'] = 'caches/mine'", r'write `cache=dict\(path='),
        ('cwd=dict(', "**{'../cwd': dict()}, cwd=dict(", 'rename it with letters'),
        ('', 'scale = "100"', 'write `scale = 100`'),
        ("'paper, arXiv 1'", "''", 'two scores and their source'),
        ('rows = dict(', 'rows = {1: dict()} | dict(', 'rename it with letters'),
        ('', "options = {'-x': 1}", 'the command line cannot pass on'),
        ('', 'size = 128', r'write `size = \[512, 1024\]`'),
        ('', 'published = 8', r'write `published = dict\(...\)`'),
        ('factors=[0.3, 1, 3]', 'steps=3', "Tuning takes no 'steps'"),
        ('factors=[0.3, 1, 3]', 'factors=[0, 1]', r'write `factors=\[0.3, 1, 3\]`'),
        ('factors=[0.3, 1, 3]', 'factors=[1, 1.0]', 'different numbers above 0'),
        (
            "metric = 'mIoU'",
            'metric = None',
            "a string, got None; write `metric='...'`",
        ),
        ('', 'student = None', 'student: expected a string, got None'),
        ('', "teacher['config'] = 5", 'teacher.config: expected a string, got 5'),
        ("metric = 'mIoU'", 'metric = 5', "metric: expected a string, got 5; .*='...'"),
        ("method='cwd'", 'method=5', r"rows.cwd.method: .*; write `method='...'`"),
        ('student=dict(seeds=[0, 1, 2])', 'student=dict(seeds=[])', 'rows.student.see'),
        (
            'student=dict(seeds=[0, 1, 2])',
            'student=dict(seeds=[True])',
            'whole numbers',
        ),
    ],
)
def test_a_wrong_suite_is_refused_with_the_line_that_mends_it(
    write: Callable, old: str, new: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        suite_file.read_suite(write(old, new))


def test_a_cached_teacher_is_one_of_all_rows_with_a_teacher(write: Callable) -> None:
    cache = "teacher['cache'] = dict(path='caches/mine', views=1)"
    suite = suite_file.read_suite(write(new=cache))
    suite.rows['own'].config = str(ROOT / 'configs/digits/seg_distilled.py')
    method, recipe, alone = (
        suite_plan.recipe_of_row(suite, suite.rows[name], {})
        for name in ('cwd', 'own', 'student')
    )
    for found in (method, recipe):
        assert found.config.model.teacher.cache == dict(path='caches/mine', views=1)
    assert 'teacher' not in alone.config.model
    assert method.options['model.teacher.cache.path'] == 'caches/mine'


def test_options_arrive_as_they_are_or_are_refused() -> None:
    values = dict(a=1, b=0.5, c=True, d=None, e='poly', f=[1, 'x'], g=(3, 4), h=1e-5)
    given = suite_options.arguments_of(values, 'options')
    assert given[5:7] == ["f=[1,'x']", 'g=(3,4)']
    for value in ('8', 'a b', {'x': 1}, 'a,b', [{'x': 1}], '[1,2'):
        with pytest.raises(ValueError, match='options: .a. is'):
            suite_options.arguments_of(dict(a=value), 'options')


def test_all_rows_of_one_seed_come_before_the_next(suite: suite_file.Suite) -> None:
    rows = list(suite.rows.values())
    order = [(row.name, seed) for row, seed in suite_plan.seed_major(rows)]
    assert order == [
        *[('student', 0), ('cwd', 0), ('own', 0)],
        *[('student', 1), ('cwd', 1), ('student', 2)],
    ]


def test_a_run_is_the_command_of_a_user(suite: suite_file.Suite) -> None:
    recipe = suite_plan.Recipe(Config(dict(model={}, train_cfg={})), {'a.b': 0.5})
    run = suite_plan.run_of(suite, suite.rows['cwd'], 1, recipe, Path('/runs'))
    digits = 'configs/digits/seg'
    assert suite_results.train_command(run) == [
        *['tools/train.py', '--student', f'{digits}_student.py'],
        *['--teacher', f'{digits}_teacher.py'],
        *['--teacher-checkpoint', f'{digits}_teacher.safetensors'],
        *['--method', 'cwd', '--at', 'neck', '--resume'],
        *['--cfg-options', 'a.b=0.5', 'randomness.seed=1'],
    ]
    assert run.folder == Path(f'/runs/cwd/seed_1_{run.config_hash[:8]}')
    assert run.recipe == f'{run.folder}/recipe/cwd_seg_teacher_seg_student.py'
    alone = suite_plan.run_of(suite, suite.rows['student'], 1, recipe, Path('/runs'))
    assert suite_results.train_command(alone)[1] == alone.recipe == suite.student


def test_two_rows_with_the_same_training_are_refused(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    suite.rows['twin'] = replace(suite.rows['student'], name='twin', seeds=[1])
    rows = {name: suite.rows[name] for name in ('student', 'twin')}
    recipes = {
        name: suite_plan.recipe_of_row(suite, row, {}) for name, row in rows.items()
    }
    with pytest.raises(ValueError, match="'student' and 'twin' are the same"):
        suite_plan.runs_of(suite, recipes, tmp_path)
    recipes['twin'] = suite_plan.recipe_of_row(suite, rows['twin'], {'own_entry': 9})
    assert len(suite_plan.runs_of(suite, recipes, tmp_path)) == 4


def test_the_command_works_where_the_benchmark_was_called(
    suite: suite_file.Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = suite_plan.Run(suite, suite.rows['student'], 0, tmp_path, {})
    assert suite_results.train_command(run)[0] == str(ROOT / 'tools/train.py')


@pytest.mark.parametrize(
    ('indices', 'iterations'),
    [(None, 26), (10, 6), (-10, 6), ([0, 5, 7], 2), (1000, 26)],
)
def test_a_plan_counts_the_chosen_images(
    suite: suite_file.Suite, indices: Any, iterations: int
) -> None:
    suite.images = 50
    loader = dict(batch_size=4, dataset=dict(indices=indices))
    config = Config(dict(train_dataloader=loader, train_cfg=dict(max_epochs=2)))
    assert suite_plan._iterations(config, suite) == iterations
    optimizer = dict(optimizer=dict(type='SGD', lr=0.1))
    said = suite_needs.schedule_of(Config(dict(config, optim_wrapper=optimizer)), 1)
    assert said.startswith('4 images a step, SGD')
    assert said.endswith(' of the training images') == (indices is not None)


@pytest.mark.parametrize('indices', [0, 2.5, True, 'three', [], 100])
def test_a_number_of_images_that_is_none_is_told(indices: Any) -> None:
    dataset = dict(dataset=dict(indices=indices))
    saving = dict(checkpoint=dict(by_epoch=False))
    config = dict(train_cfg=dict(max_iters=8), default_hooks=saving)
    config['test_evaluator'] = dict(type='IoUMetric')
    assert suite_faults.fault_of(Config(config), 99) == ''
    told = suite_faults.fault_of(Config(dict(config, train_dataloader=dataset)), 99)
    assert 'set the option `train_dataloader.dataset.indices=250`' in told


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        (dict(model=dict(student={})), 'student_epoch_12.pth'),
        (
            dict(
                model={}, default_hooks=dict(checkpoint=dict(type='X', by_epoch=False))
            ),
            'iter_8.pth',
        ),
    ],
)
def test_the_last_weights_are_tested(
    suite: suite_file.Suite, config: dict, name: str
) -> None:
    config['train_cfg'] = dict(max_epochs=12, max_iters=8)
    recipe = suite_plan.Recipe(Config(config))
    run = suite_plan.run_of(suite, suite.rows['own'], 0, recipe, Path())
    assert run.weights == name


def test_the_digest_sees_seed_and_files_but_not_places(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        teacher = dict(checkpoint=str(tmp_path / 'teacher.pth'))
        given = dict(model=dict(teacher=teacher), randomness=dict(seed=0))
        return suite_digest.hash_of(Config({**given, **changes}))

    (tmp_path / 'teacher.pth').write_bytes(b'one')
    (tmp_path / 'other.pth').write_bytes(b'two')
    first = digest()
    assert digest(work_dir='elsewhere') == first
    assert digest(randomness=dict(seed=1)) != first
    assert digest(model=dict(teacher=dict(checkpoint=str(tmp_path / 'other.pth'))))
    assert digest(a=f'{ROOT}/data') == digest(a='data')
    config = Config(dict(model={}))
    one, two = (suite_digest.hash_of(config, gpus) for gpus in (1, 2))
    assert suite_digest.hash_of(config) == one != two
    suite_digest._digest.cache_clear()
    (tmp_path / 'teacher.pth').write_bytes(b'another')
    assert digest() != first


def test_a_method_that_does_not_fit_becomes_an_error_of_its_row(
    suite: suite_file.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    row = replace(suite.rows['cwd'], method='ld', at=None)
    recipe = suite_plan.recipe_of_row(suite, row, {})
    assert recipe.config is None
    assert recipe.error
    assert '\n' not in recipe.error


def test_damaged_results_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / 'mine.json'
    path.write_text('[{"row": "stu')
    with pytest.raises(ValueError, match='mine.json: .*git checkout mine.json'):
        suite_results.read_results(path)
    assert path.read_text() == '[{"row": "stu'
    for damage in (b'[{"row": "student"}]', b'\xff'):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match='git checkout mine.json'):
            suite_results.read_results(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match='IsADirectoryError'):
        suite_results.read_results(path)
    with pytest.raises(ValueError, match='expected a folder that .*; give another'):
        suite_results.check_writable(Path('/proc/work'), 'give another')


def test_results_are_kept_one_per_line_in_the_order_of_the_suite(
    tmp_path: Path,
) -> None:
    path = tmp_path / 'mine.json'
    for row, seed in (('cwd', 1), ('gone', 0), ('student', 0), ('cwd', 0)):
        suite_results.keep(path, result(row, seed, 1.0), ['student', 'cwd'])
    suite_results.keep(path, result('cwd', 0, 2.0), ['student', 'cwd'])
    lines = path.read_text().splitlines()
    rows = [json.loads(line.rstrip(',')) for line in lines[1:-1]]
    found = [(row['row'], row['seed'], row['score']) for row in rows]
    expected = [('student', 0, 1.0), ('cwd', 0, 2.0), ('cwd', 1, 1.0), ('gone', 0, 1.0)]
    assert found == expected
    assert json.loads(path.read_text()) == rows


def test_done_is_skipped_failed_waits_and_changed_is_replaced(
    suite: suite_file.Suite,
) -> None:
    rows = [result('student', 0, 1.0), result('student', 1, 1.0), failed('cwd', 0)]
    results = {(row['row'], None, row['seed']): row for row in rows}
    runs = [
        run_of(suite, 'student', 0, config_hash='same'),
        run_of(suite, 'student', 1, config_hash='other'),
        run_of(suite, 'cwd', 0, config_hash='same'),
        run_of(suite, 'cwd', 1, config_hash='same'),
    ]
    found = suite_results.to_do(runs, results, retry=False)
    assert found == dict(
        new=runs[3:], changed=[runs[1]], done=[runs[0]], failed=[runs[2]], stuck=[]
    )
    found = suite_results.to_do(runs, results, retry=True)
    assert found['new'] == runs[2:]
    assert suite_results.counted(runs, results) == [rows[0], rows[2]]
    suite.metric = 'mAcc'
    assert suite_results.to_do(runs, results, retry=False)['changed'] == runs[:3]
    assert suite_results.counted(runs, results) == []


def test_a_result_stays_if_its_run_cannot_start_here(suite: suite_file.Suite) -> None:
    rows = [result('student', 0, 1.0), failed('student', 1)]
    results = {(row['row'], None, row['seed']): row for row in rows}
    runs = [run_of(suite, 'student', seed, missing='no weights') for seed in (0, 1)]
    found = suite_results.to_do(runs, results, retry=False)
    assert (found['done'], found['changed']) == ([runs[0]], [runs[1]])
    assert suite_results.counted(runs, results) == rows[:1]
    suite.metric = 'mAcc'
    found = suite_results.to_do(runs, results, retry=False)
    assert (found['stuck'], found['changed']) == ([runs[0]], [runs[1]])
    assert suite_results.counted(runs, results) == []


def test_a_result_of_a_config_that_no_longer_can_be_made_stays_and_does_not_count(
    suite: suite_file.Suite, capsys: pytest.CaptureFixture
) -> None:
    rows = [result('cwd', 0, 1.0)]
    results = {('cwd', None, 0): rows[0]}
    run = run_of(suite, 'cwd', error="no module 'nekc'")
    assert suite_results.to_do([run], results, retry=True)['stuck'] == [run]
    assert suite_results.counted([run], results) == []
    assert suite_report.tell_failed([run], results) == 1
    told = "cwd, seed 0: its config has changed, and cannot start: no module 'nekc'"
    assert told in capsys.readouterr().out


def test_missing_weights_are_named(tmp_path: Path) -> None:
    backbone = dict(init_cfg=dict(checkpoint=str(tmp_path / 'backbone.pth')))
    config = Config(dict(model=dict(backbone=backbone)))
    missing = suite_digest.missing_weights
    assert missing(config) == (
        f'there are no weights {tmp_path}/backbone.pth, which its config names'
    )
    (tmp_path / 'backbone.pth').write_bytes(b'')
    assert missing(config) == ''
    config.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    assert missing(config) == ''


def test_a_run_knows_the_missing_weights_of_its_recipe(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    row = suite.rows['student']
    options = {'model.backbone.init_cfg.checkpoint': str(tmp_path / 'gone.pth')}
    recipe = suite_plan.recipe_of_row(suite, row, options)
    run = suite_plan.run_of(suite, row, 0, recipe, tmp_path)
    assert run.error == ''
    assert run.obstacle == recipe.missing
    assert 'gone.pth' in run.obstacle


def test_a_row_says_what_was_measured(
    suite: suite_file.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(suite, 'cwd', config_hash='abc')
    for name, steps in (('a', (9.0, 0.1)), ('b', (0.2, 0.3))):
        log = run.folder / name / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        lines = [dict(iter=i, time=seconds) for i, seconds in enumerate(steps, 1)]
        lines.append(dict(mIoU=1.0, time=50.0, step=2))
        log.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    metrics = run.folder / 'test/2026/2026.json'
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"mIoU": 12.34567, "time": 1.0}\n')
    for commit in ('c0ffee', 'c0ffee', 'decade'):
        monkeypatch.setattr(suite_results, 'commit', lambda commit=commit: commit)
        suite_results.note_commit(run)
    row = suite_results.result_of(run)
    assert row['score'] == 12.346
    assert row['seconds_per_iteration'] == 0.25
    assert (row['iterations'], row['status']) == (2, 'done')
    # It was resumed with another commit.
    assert row['commit'] == 'c0ffee, decade'
    assert row['versions']['kdtoolbox']
    metrics.write_text('{"aAcc": 12.3, "time": 1.0}\n')
    row = suite_results.result_of(run)
    assert row['status'] == 'failed'
    assert "no 'mIoU'; there are ['aAcc']" in row['reason']
    # A detector that finds nothing has no metric.
    metrics.write_text('{"time": 1.0}\n')
    assert "COCO has no 'mIoU'" in suite_results.result_of(run)['reason']
    suite.metric = 'coco/bbox_mAP'
    assert suite_results.result_of(run)['score'] == 0
    # The log has every 25th iteration.
    run.iterations = 30
    assert suite_results.result_of(run)['iterations'] == 30
    assert suite_results.result_of(run, 'no disk')['iterations'] == 2


@pytest.mark.parametrize(
    ('metric', 'score'),
    [('mIoU', 'NaN'), ('mIoU', '[1.0]'), ('coco/bbox_mAP_s', '-1.0')],
)
def test_what_is_no_score_is_a_failure(
    suite: suite_file.Suite, metric: str, score: str
) -> None:
    suite.metric = metric
    run = run_of(suite, 'cwd')
    metrics = run.folder / 'test/2026/2026.json'
    metrics.parent.mkdir(parents=True)
    metrics.write_text(f'{{"{metric}": {score}}}\n')
    row = suite_results.result_of(run)
    assert row['status'] == 'failed'
    assert f'expected a score, got {metric} = ' in row['reason']


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        (dict(), ''),
        (dict(test_evaluator=dict(format_only=True)), 'test_evaluator.format_only=Fal'),
        (dict(test_evaluator=[dict(format_only=True), dict()]), ''),
        (dict(test_evaluator=None), 'its test gives no score'),
        (dict(train_cfg=None), 'expected max_iters or max_epochs'),
        (
            dict(train_cfg=dict(max_iters=8, max_epochs=1)),
            'write `train_cfg.max_epochs` in place of `train_cfg.max_iters`',
        ),
        (
            dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=8, max_epochs=1)),
            'write `train_cfg.max_iters` in place of `train_cfg.max_epochs`',
        ),
        (dict(train_cfg=dict(max_iters=8.0)), 'expected a whole number, got 8.0'),
        (dict(train_cfg=dict(max_epochs=1)), 'default_hooks.checkpoint.by_epoch=True'),
        (dict(default_hooks={}), 'default_hooks.checkpoint.by_epoch=False'),
    ],
)
def test_a_config_without_a_score_is_told_before_it_trains(
    changes: dict, fault: str
) -> None:
    hooks = dict(checkpoint=dict(by_epoch=False))
    given = dict(train_cfg=dict(max_iters=8), default_hooks=hooks)
    given['test_evaluator'] = dict(type='IoUMetric')
    told = suite_faults.fault_of(Config({**given, **changes}), None)
    assert fault in told
    assert bool(fault) == bool(told)


def test_the_cause_of_a_failure_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / 'output.log'
    log.write_text('step 1\nno such file: a.pth\n\n')
    assert suite_running.cause(log) == 'no such file: a.pth'
    log.write_text('  torch.OutOfMemoryError: CUDA out of memory\n====\nFAILED\n')
    assert suite_running.cause(log).startswith('torch.OutOfMemoryError')
    log.write_text('')
    assert suite_running.cause(log) == 'no output'


def test_the_time_of_a_run_is_that_of_its_row_or_of_the_same_pair(
    suite: suite_file.Suite,
) -> None:
    rows = [result('student', 0, 1.0, 0.5) | dict(iterations=8)]
    expected = suite_expected.Expected([*rows, failed('own', 0)])
    alone, own = run_of(suite, 'student'), run_of(suite, 'own', iterations=8)
    assert expected.run(alone) is None
    expected.set_iterations([alone, own])
    assert (expected.run(alone), expected.run(own)) == (4.0, None)
    suite.student = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
    suite.teacher.config = 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'
    cwd = run_of(suite, 'cwd', iterations=8)
    cwd.template = 'configs/cwd/cwd_fpn_gfl_r101_gfl_r50_1x_coco.py'
    [*_, ratio] = [
        cost['vs_student']
        for cost in json.loads(suite_expected.COSTS.read_text())
        if cost['config'] == cwd.template
    ]
    assert expected.run(cwd) == pytest.approx(4.0 * ratio)
    suite.student = 'mmdet::gfl/gfl_r18_fpn_1x_coco.py'
    assert expected.run(cwd) is None


def test_gpus_are_given_in_groups() -> None:
    groups = suite_running.device_groups
    assert groups(1, dict(CUDA_VISIBLE_DEVICES='2,5')) == ['2', '5']
    assert groups(2, dict(CUDA_VISIBLE_DEVICES='2,5,6')) == ['2,5']


def test_the_interval_is_that_of_students_t() -> None:
    # Tables of Student's t: 4.303 for 2 degrees of freedom, 2.776 for 4.
    for values, quantile in (([1.0, 2.0, 6.0], 4.303), ([0, 1, 2, 3, 5.0], 2.776)):
        middle = sum(values) / len(values)
        squares = sum((value - middle) ** 2 for value in values)
        half = quantile * math.sqrt(squares / (len(values) - 1) / len(values))
        expected = (middle - half, middle + half)
        assert suite_statistics.interval(values) == pytest.approx(expected, abs=2e-3)
    assert suite_statistics.interval([1.0]) is None
    assert suite_statistics.interval([2.0, 2.0]) == (2.0, 2.0)


def test_differences_are_paired_by_seed(suite: suite_file.Suite) -> None:
    results = [
        *[result('student', seed, 10.0 + seed, 0.5) for seed in (0, 1, 2)],
        *[result('cwd', 0, 13.0, 1.0), result('cwd', 1, 12.0, 0.75)],
        *[result('cwd', 9, 99.0, 9.0), failed('cwd', 3), failed('own', 0)],
    ]
    costs = dict(cwd=1.75)
    alone, cwd, own = suite_statistics.summaries(suite, results, costs)
    assert (alone.mean, alone.std, alone.difference) == (11.0, 1.0, None)
    assert cwd.mean == pytest.approx(124 / 3)
    # +3 and +1; seed 9 has no partner.
    assert (cwd.pairs, cwd.difference, cwd.cost) == (2, 2.0, 1.75)
    assert cwd.interval == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert (cwd.failed, cwd.published.distilled) == (1, 74.5)
    assert (own.mean, own.difference, own.interval, own.failed) == (None,) * 3 + (1,)


def test_a_cost_is_that_of_the_method_that_was_measured(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    path = tmp_path / 'mine.costs.json'
    assert suite_cost.costs_of(suite, path) == {}
    costs = dict(
        cwd=dict(cost=1.5, trains='cwd', size=[64, 64]),
        own=dict(cost=2.0, trains='own.py', size=[64, 64]),
        gone=dict(cost=3.0, trains='kd', size=[64, 64]),
    )
    path.write_text(json.dumps(costs))
    # The row of the suite compares at the neck.
    assert suite_cost.costs_of(suite, path) == dict(own=2.0)
    costs['cwd']['trains'] = 'cwd at neck'
    path.write_text(json.dumps(costs))
    assert suite_cost.costs_of(suite, path) == dict(cwd=1.5, own=2.0)
    suite.size = [128, 128]
    assert suite_cost.costs_of(suite, path) == {}


@pytest.mark.parametrize('text', ['{"own": ', '[]', '{"own": 5}', '{"own": {}}'])
def test_damaged_costs_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'mine.costs.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'git checkout mine\.costs\.json'):
        suite_cost.read_costs(path)


def test_the_table_and_the_picture_are_written(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    results = [result('student', s, 10.0 + s) for s in (0, 1)]
    results += [result('cwd', s, 12.0 + 2 * s) for s in (0, 1)]
    found = suite_statistics.summaries(suite, results, {})
    suite_table.write_csv(tmp_path / 'mine.csv', found)
    lines = (tmp_path / 'mine.csv').read_text().splitlines()
    assert lines[0] == ','.join(suite_table.COLUMNS)
    numbers = 'cwd,2,13.000,1.414,2.500,-3.853,8.853,,0,70.0,74.5'
    assert lines[2] == f'{numbers},"paper, arXiv 1",'
    assert lines[3] == 'own,0,,,,,,,0,,,,it has no data'
    assert suite_plot.draw(suite, found, tmp_path / 'mine.png')
    assert (tmp_path / 'mine.png').read_bytes().startswith(b'\x89PNG')
    assert not suite_plot.draw(suite, found[:1], tmp_path / 'none.png')
    # The picture of results that no longer count.
    assert not suite_plot.draw(suite, found[:1], tmp_path / 'mine.png')
    assert not (tmp_path / 'mine.png').exists()


def test_the_search_multiplies_all_weights_and_prints_the_row(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    recipe = suite_plan.Recipe(Config.fromfile(tmp_path / 'own.py'))
    weights = suite_tuning.loss_weights(recipe.config)
    assert weights == {
        'model.losses.loss_cwd.loss_weight': 10.0,
        # The default of the class.
        'model.losses.loss_kd.loss_weight': 1.0,
    }
    runs = suite_tuning.tuning_runs(suite, {'cwd': recipe}, tmp_path)
    assert [run.key for run in runs] == [
        ('cwd', factor, seed) for seed in (7, 8) for factor in (0.3, 1, 3)
    ]
    assert runs[0].options['model.losses.loss_cwd.loss_weight'] == 3.0
    assert len({run.folder for run in runs}) == len({r.config_hash for r in runs}) == 6
    rows = [result('cwd', 7, 5.0) | dict(factor=f) for f in (0.3, 3)]
    means = suite_tuning.means_of([*rows, failed('cwd', 8) | dict(factor=1)])
    assert suite_tuning.best_of(means['cwd']) == 3
    # Weights that an earlier search has found are not multiplied again.
    found = {'model.losses.loss_cwd.loss_weight': 30.0, 'train_cfg.max_iters': 8}
    row = replace(suite.rows['cwd'], options=found)
    assert suite_tuning.without_weights(row).options == {'train_cfg.max_iters': 8}
    line = suite_tuning.line_to_paste(suite, 'cwd', recipe, 3)
    assert line == (
        "cwd=dict(method='cwd', at='neck', options="
        "{'model.losses.loss_cwd.loss_weight': 30.0, "
        "'model.losses.loss_kd.loss_weight': 3.0}),"
    )


FAKE_TOOL = """
import pathlib, sys
folder = pathlib.Path(sys.argv[-1])
if folder.name != 'test':
    assert folder.parent.name == 'student', 'no disk'
else:
    (folder / '2026').mkdir()
    (folder / '2026/2026.json').write_text('{"mIoU": 5.0}')
"""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs start whose configs were never read."""
    monkeypatch.setattr(suite_running, 'check_unchanged', lambda run: None)
    monkeypatch.setattr(jobs, '_POLL_SECONDS', 0.05)


@pytest.mark.usefixtures('made_up')
def test_each_run_becomes_a_row_and_a_failure_stops_no_other(
    suite: suite_file.Suite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(suite_running, '_launched', lambda *_: ['-c', FAKE_TOOL])
    folder = suite.path.parent / 'work'
    runs = [
        suite_plan.Run(suite, suite.rows[row], seed, folder / row / str(seed), {})
        for row, seed in (('cwd', 0), ('student', 0), ('student', 1))
    ]
    runs.append(run_of(suite, 'own', error='it does not fit'))
    rows: list[dict] = []
    suite_running.run_all(runs, lambda run: None, rows.append, at_once=2, gpus=1)
    assert {(row['row'], row['seed']): row.get('score') for row in rows} == {
        **{('own', 0): None, ('cwd', 0): None},
        **{('student', 0): 5.0, ('student', 1): 5.0},
    }
    reasons = {row['row']: row.get('reason') for row in rows}
    assert reasons['own'] == 'it does not fit'
    assert reasons['cwd'] == 'AssertionError: no disk'
    shown = capsys.readouterr().out
    assert '3/3 student, seed 1: 5.0' in shown or '3/3 student, seed 0: 5.0' in shown


@pytest.mark.usefixtures('made_up')
def test_more_runs_at_once_than_groups_of_gpus_share_them(
    suite: suite_file.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = "import os; raise SystemExit(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(suite_running, '_launched', lambda *_: ['-c', tell])
    monkeypatch.setattr(suite_running, 'device_groups', lambda *_: ['0,1', '2,3'])
    folder = suite.path.parent / 'work'
    runs = [
        suite_plan.Run(suite, suite.rows['cwd'], seed, folder / str(seed), {})
        for seed in range(3)
    ]
    rows: list[dict] = []
    suite_running.run_all(runs, lambda run: None, rows.append, at_once=3, gpus=2)
    assert sorted(row['reason'] for row in rows) == ['0,1', '0,1', '2,3']


@pytest.mark.usefixtures('made_up')
def test_a_run_of_another_benchmark_is_left_to_it(
    suite: suite_file.Suite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    refused = f"print('it {suite_running.STILL_RUNS}\\nlast line'); raise SystemExit(2)"
    monkeypatch.setattr(suite_running, '_launched', lambda *_: ['-c', refused])
    run = run_of(suite, 'student')
    rows: list[dict] = []
    suite_running.run_all([run], lambda run: None, rows.append, at_once=1, gpus=1)
    assert rows == []
    assert suite_running.STILL_RUNS in capsys.readouterr().out


def test_a_run_whose_files_have_changed_since_the_plan_does_not_start(
    suite: suite_file.Suite, tmp_path: Path
) -> None:
    row = suite.rows['own']
    [run] = suite_plan.runs_of(
        suite, {'own': suite_plan.recipe_of_row(suite, row, {})}, tmp_path / 'work'
    )
    suite_plan.check_unchanged(run)
    Path(row.config).write_text(DISTILLED.replace('10.0', '9.0'))
    with pytest.raises(ValueError, match='own, seed 0: its config .* call again'):
        suite_plan.check_unchanged(run)


def test_a_student_named_by_its_file_counts_with_its_content(tmp_path: Path) -> None:
    student = tmp_path / 'student.py'
    config = Config(dict(model=dict(student=str(student))))
    digests = []
    for depth in (18, 34):
        student.write_text(f'model = dict(depth={depth})\n')
        suite_digest.forget_files()
        digests.append(suite_digest.hash_of(config))
    assert digests[0] != digests[1]


SRUN = """\
#!/usr/bin/env bash
# Notes its arguments and writes the result of a test.
echo "$*" >> "$NOTES"
[[ -z ${{FAIL:-}} ]] || {{ echo 'ValueError: no node'; exit 1; }}
[[ $* != */test.py* ]] || {{ mkdir -p {0}; echo '{{"mIoU": 5.0}}' > {0}/2026.json; }}
"""


@pytest.mark.parametrize('fail', ['', '1'])
def test_slurm_runs_are_submitted_once_and_collected_later(
    suite: suite_file.Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: str,
) -> None:
    run = run_of(suite, 'cwd', weights='student_iter_8.pth', config_hash='same')
    srun = tmp_path / 'srun'
    srun.write_text(SRUN.format(f'{run.folder}/test/2026'))
    srun.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    for name, value in dict(
        PATH=path, NOTES=str(tmp_path / 'notes'), FAIL=fail
    ).items():
        monkeypatch.setenv(name, value)
    rows: list[dict] = []

    def call() -> None:
        suite_slurm.submit_all([run], rows.append, 'part', gpus=2)

    call()
    end = time.monotonic() + 30
    while not (run.folder / suite_slurm.ENDED).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert rows == []
    call()
    notes = (tmp_path / 'notes').read_text().splitlines()
    assert '-p part --job-name=mine_cwd_0 --gres=gpu:2 --ntasks=2' in notes[0]
    assert '/train.py --student=configs/digits/seg_student.py --work-dir' in notes[0]
    assert len(notes) == 1 if fail else '/test.py' in notes[1]
    assert len(rows) == 1
    assert rows[0].get('score') == (None if fail else 5.0)
    assert rows[0].get('reason') == ('ValueError: no node' if fail else None)
    assert rows[0]['device'] == 'slurm, partition part'
    assert not (run.folder / suite_slurm.SUBMITTED).exists()
    # The note of a submission whose process has died.
    gone = subprocess.Popen(['true'])
    gone.wait()
    note = dict(host=socket.gethostname(), boot=suite_slurm._boot(), pid=gone.pid)
    (run.folder / suite_slurm.SUBMITTED).write_text(json.dumps(note))
    assert not suite_slurm._is_alive(run)
    # And one from before a restart, whose number another process has now.
    note |= dict(boot='before', pid=os.getpid())
    (run.folder / suite_slurm.SUBMITTED).write_text(json.dumps(note))
    assert not suite_slurm._is_alive(run)
    # A second job for a training that still runs is no failure of it.
    (run.folder / 'output.log').write_text(f'it {suite_running.STILL_RUNS}\n')
    (run.folder / suite_slurm.ENDED).write_text('2')
    rows.clear()
    call()
    assert rows == []


def test_runs_that_are_left_are_told(
    suite: suite_file.Suite, capsys: pytest.CaptureFixture
) -> None:
    run = run_of(suite, 'student', config_hash='same')
    row = result('student', 0, 1.0)
    done = {('student', None, 0): row}
    other = {('student', None, 0): row | dict(config_hash='other')}
    assert suite_report.tell_failed([run], done) == 0
    assert capsys.readouterr().out == ''
    for found in ({}, other):
        assert suite_report.tell_failed([run], found) == 1
        assert '1 runs have no result yet' in capsys.readouterr().out
    # The scheduler may still run it.
    assert suite_report.tell_failed([run], {}, local=False) == 0
