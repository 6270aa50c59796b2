import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# The tool imports its parts from its own folder.
sys.path.append(str(ROOT / 'tools'))

import benchmark  # noqa: E402
import benchmark_guard  # noqa: E402
import benchmark_inputs  # noqa: E402
import benchmark_report  # noqa: E402
import benchmark_steps  # noqa: E402

SIZES = dict(size=[64, 96], strides=[8, 16], channels=8, boxes=3, repeats=1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*options: str) -> None:
        command = ['tools/benchmark.py', 'losses', *options]
        for name, value in (SIZES | dict(threads=torch.get_num_threads())).items():
            values = value if isinstance(value, list) else [value]
            command += [f'--{name}', *map(str, values)]
        monkeypatch.setattr(sys, 'argv', command)
        # The command sets this variable for the profiler; restore it afterwards.
        monkeypatch.setenv('KINETO_LOG_LEVEL', '9')
        benchmark.main()

    return run


def registered() -> set[str]:
    """Return the names of the losses, by the files that register them."""
    found = set()
    for path in ROOT.glob('kdtoolbox/losses/*/*.py'):
        found.update(
            re.findall(r'@MODELS.register_module\(\)\nclass (\w+)', path.read_text())
        )
    assert len(found) > 20
    return found


def test_every_loss_has_a_row() -> None:
    sizes = benchmark_inputs.sizes_of((64, 96), (8, 16), channels=8, images=2)
    assert set(benchmark.table(sizes)) == registered()


@pytest.mark.e2e
def test_page_of_all_losses(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / 'docs' / 'losses.md'
    names = registered()
    run('--write', str(page))
    text = page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ['losses.md']
    assert f'torch {torch.__version__}' in text
    assert '--size 64 96' in text
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    rows = {line.split(' | ')[0][2:]: line.split(' | ')[1:] for line in lines[2:]}
    assert set(rows) == names | {'plain MSE'}
    for name, (wire, milliseconds, plain, bare, *memory) in rows.items():
        assert float(milliseconds) > 0
        assert (float(plain or 0) > 0) == (wire == 'fpn' and name != 'plain MSE')
        assert (float(bare or 0) > 0) == (name in {'DiffKDLoss', 'FTLoss', 'MGDLoss'})
        assert float(memory[1].rstrip(' |')) > 0
    shown = capsys.readouterr().out
    assert 'FGDLoss' in shown
    # The console wraps long lines.
    assert f'{page.name}written' in ''.join(shown.split())


def test_only(run: Callable, capsys: pytest.CaptureFixture) -> None:
    run('--only', 'PKDLoss')
    shown = capsys.readouterr().out
    assert 'PKDLoss' in shown
    assert 'CWDLoss' not in shown
    with pytest.raises(SystemExit):
        run('--only', 'PDKLoss')
    error = capsys.readouterr().err
    assert 'PDKLoss: there are [' in error
    assert "'PKDLoss'" in error


def test_peak_counts_what_is_held_at_once() -> None:
    numbers = torch.zeros(1 << 16)

    def step() -> None:
        for _ in range(3):
            numbers.exp().exp()

    size = numbers.numel() * 4
    assert benchmark.peak_bytes(step) == 2 * size
    assert benchmark.peak_bytes(numbers.exp_) == 0


@pytest.mark.parametrize(
    ('name', 'most'), [('BPKDLoss', 16), ('FGDLoss', 2.3), ('MGDLoss', 7.5)]
)
def test_few_maps_are_held_at_once(name: str, most: float) -> None:
    size, strides = (512, 512), (8,)
    sizes = benchmark_inputs.sizes_of(size, strides, channels=32, images=2)
    scene = benchmark_inputs.make_scene(sizes, size, strides, boxes=3)
    row = benchmark.table(sizes)[name]
    assert 1 < benchmark.measure(name, row, scene, repeats=1).maps < most


def test_steps_run_in_turn_and_warm_up() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in ('a', 'b')}
    times = benchmark.seconds_of(steps, lambda: calls.append('clear'), repeats=3)
    assert calls == ['clear', 'a', 'clear', 'b'] * 5
    assert [len(values) for values in times.values()] == [3, 3]


def test_every_distilled_recipe_of_the_digits_has_a_student() -> None:
    recipes = benchmark_steps.recipes()
    assert recipes['det_pkd'] == 'det_student'
    assert recipes['seg_cirkd'] == 'seg_student'
    there = {path.stem for path in (ROOT / 'configs/digits').glob('*.py')}
    alone = {stem for stem in there if stem.endswith(('_student', '_teacher'))}
    assert recipes.keys() == there - alone


def test_costs_keep_the_other_sections(tmp_path: Path) -> None:
    path = tmp_path / 'costs.json'
    benchmark_report.note('losses', {'PKDLoss': 1.23456}, path, threads=1)
    benchmark_report.note('steps', {'det_pkd': {'ratio': 2.0}}, path, threads=1)
    costs = json.loads(path.read_text())
    assert costs['losses']['values'] == {'PKDLoss': 1.235}
    assert costs['steps']['values'] == {'det_pkd': {'ratio': 2.0}}
    assert torch.__version__ in costs['losses']['machine']


@pytest.mark.e2e
def test_a_distilled_step_is_compared_with_the_students_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page, costs = tmp_path / 'costs.md', tmp_path / 'costs.json'
    command = ['tools/benchmark.py', 'steps', '--only', 'det_pkd', '--repeats', '2']
    command += ['--threads', str(torch.get_num_threads())]
    command += ['--write', str(page), '--costs', str(costs)]
    monkeypatch.setattr(sys, 'argv', command)
    benchmark.main()
    cost = json.loads(costs.read_text())['steps']['values']['det_pkd']
    low, high = cost['quartiles']
    assert 1 < low <= cost['ratio'] <= high
    assert cost['student_ms'] < cost['distilled_ms']
    [row] = [x for x in page.read_text().splitlines() if x.startswith('| `configs')]
    assert row.split(' | ')[3] == f'{cost["ratio"]:.2f}'
    assert 'det_pkd' in capsys.readouterr().out


@pytest.mark.e2e
def test_a_cached_step_and_flipped_maps_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ['tools/benchmark.py', 'cache', '--repeats', '1']
    command += ['--threads', str(torch.get_num_threads())]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.chdir(ROOT)
    benchmark.main()
    output = capsys.readouterr().out
    times = dict(re.findall(r'(student|cached|online) +(\d+)', output))
    assert len(times) == 3
    assert all(int(value) > 0 for value in times.values())
    errors = re.findall(r'flipped map of fpn, level \d: relative error (\S+)', output)
    assert len(errors) == 4
    assert min(map(float, errors)) > 0.1


@pytest.mark.e2e
def test_the_check_for_nan_is_measured_within_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made: list[Any] = []
    watched = benchmark_guard.Watched
    monkeypatch.setattr(
        benchmark_guard, 'Watched', lambda model: made.append(watched(model)) or made[0]
    )
    before = torch.get_num_threads()
    config = ROOT / 'configs/digits/det_distilled.py'
    command = ['tools/benchmark.py', 'guard', str(config), '--repeats', '1']
    monkeypatch.setattr(sys, 'argv', [*command, '--threads', str(before)])
    monkeypatch.chdir(ROOT)
    benchmark.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {
        line[0]: line[1:]
        for line in lines
        if line and line[0] in benchmark_guard.GUARDS
    }
    assert list(rows) == ['none', 'values', 'gradients', 'both']
    for name, (milliseconds, ratio, own, share) in rows.items():
        assert float(milliseconds) > float(own)
        assert float(ratio) > 0
        assert (float(share.rstrip('%')) > 0) == (name != 'none')
    # Each check finds a NaN on its own.
    weight = next(made[0].model.student.neck.parameters())
    weight.data[:] = float('nan')
    with pytest.raises(ValueError, match='the gradients of made-up images'):
        made[0].step('gradients')
    with pytest.raises(ValueError, match=r'model\.recorders\.student'):
        made[0].step('values')


def test_a_failed_write_leaves_the_former_page(tmp_path: Path) -> None:
    page = tmp_path / 'losses.md'
    benchmark.write('former', page)
    with pytest.raises(UnicodeEncodeError):
        benchmark.write('new \ud800', page)
    assert page.read_text() == 'former'
    assert [path.name for path in tmp_path.iterdir()] == ['losses.md']


def test_what_a_benchmark_writes_does_not_make_the_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ('-c', 'user.name=a', '-c', 'user.email=a@b')
        subprocess.run(['git', *who, *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(benchmark_report, 'ROOT', tmp_path)
    for name in ('configs/costs.json', 'docs/costs.md', 'tools/benchmark.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('before')
    git('init', '-q')
    git('add', '-A')
    git('commit', '-qm', 'before')
    clean = benchmark_report.commit()
    for name in ('configs/costs.json', 'docs/costs.md'):
        (tmp_path / name).write_text('after')
    assert benchmark_report.commit() == clean
    (tmp_path / 'tools/benchmark.py').write_text('after')
    assert benchmark_report.commit() == f'{clean} dirty'
    (tmp_path / '.git/HEAD').write_text('damaged')
    assert benchmark_report.commit() == 'unknown'
