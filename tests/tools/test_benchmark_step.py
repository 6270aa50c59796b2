import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# The tool imports its parts from its own folder.
sys.path.append(str(ROOT / 'tools'))

import benchmark  # noqa: E402
import benchmark_page  # noqa: E402
import benchmark_parts  # noqa: E402
import benchmark_step  # noqa: E402

PARTS = ('student', 'teacher_full', 'teacher_minimal', 'distill')
RECIPE = str(ROOT / 'configs/digits/det_distilled.py')


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*options: str) -> None:
        threads = str(torch.get_num_threads())
        command = ['tools/benchmark.py', *options, '--threads', threads]
        monkeypatch.setattr(sys, 'argv', command)
        # The command sets this variable for the profiler; restore it afterwards.
        monkeypatch.setenv('KINETO_LOG_LEVEL', '9')
        benchmark.main()

    return run


def test_a_step_of_a_recipe_is_measured_in_parts(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / 'step.json'
    size = ('--size', '64', '96', '--batch', '1', '--iters', '2')
    run('step', RECIPE, *size, '--json', str(target))
    found = json.loads(target.read_text())
    expected = dict(config=RECIPE, size=[64, 96], batch=1, iters=2, amp=None)
    assert expected.items() <= found.items()
    assert found['torch'] == torch.__version__
    assert found['threads'] == torch.get_num_threads()
    assert found['device']
    seconds = [found[f'{name}_step'] for name in ('student', 'distill')]
    seconds += [found['teacher_full'], found['teacher_minimal']]
    assert min(seconds) > 0
    low, high = found['overhead_quartiles']
    assert 0 < low <= found['overhead'] <= high
    assert found['vs_student'] > 1
    assert 0 < found['guard_share'] < 1
    peaks = {name: found[f'peak_{name}'] for name in PARTS}
    assert 0 < peaks['teacher_minimal'] <= peaks['teacher_full'] < peaks['distill']
    assert 0 < peaks['student'] < peaks['distill']
    assert found['memory_overhead'] == peaks['distill'] / peaks['student']
    shown = capsys.readouterr().out
    assert f'{found["overhead"]:.3f}' in shown


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ([RECIPE.replace('distilled', 'student')], 'expected a kdtoolbox.Distiller'),
        ([RECIPE, '--iters', '1'], '--iters 1: expected at least 2'),
        ([RECIPE, '--amp', 'float16'], 'set --amp bfloat16'),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: Callable, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run('step', *options)
    assert message in capsys.readouterr().err


def test_overheads_compare_neighbouring_runs() -> None:
    times = dict(
        student=[1.0, 2.0, 4.0],
        teacher_full=[9.0, 9.0, 9.0],
        teacher_minimal=[1.0, 2.0, 4.0],
        distill=[2.0, 6.0, 16.0],
    )
    found = benchmark_step.overheads(times)
    assert found['overhead'] == 1.5
    assert found['overhead_quartiles'] == (1.25, 1.75)
    assert found['vs_student'] == 3


def test_a_distillation_step_trains_student_and_connectors() -> None:
    model = benchmark_parts.random_distiller(RECIPE)
    batch = benchmark_step.made_up_batch(model.student, 64)
    cfg = benchmark_step.load_config(RECIPE)
    parts = benchmark_parts.parts_of(model, batch, cfg, amp=None)
    optimizer = parts['distill'].optimizer
    assert optimizer is not None
    for group in optimizer.param_groups:
        group['lr'] = 0.01
    weights = [model.student.neck.lateral_convs[0].conv.weight]
    weights += [next(model.connectors.parameters())]
    before = [weight.clone() for weight in weights]
    parts['distill'].step()
    assert not any(map(torch.equal, before, weights))
    held = {name: part.held() for name, part in parts.items()}
    # The distiller's optimizer now has a momentum of each weight.
    assert held['distill'] > 2 * held['student'] + held['teacher_full']
    # The checks are those of a training.
    weights[0].data[:] = float('nan')
    with pytest.raises(ValueError, match=r'model\.recorders\.student'):
        parts['distill'].step()


def measured(page: str) -> list[str]:
    """Return the rows of recipes and of targets."""
    names = r'(?:\w+/\S+\.py|' + '|'.join(benchmark_page.TARGETS) + ')'
    return re.findall(rf'^\| `{names}` .*', page, re.MULTILINE)


def test_the_page_holds_the_figures_that_were_measured() -> None:
    page = ROOT / 'docs/performance.md'
    known = json.loads(page.with_suffix('.json').read_text())
    for runs in benchmark_page.RUNS.values():
        for run in runs:
            assert (ROOT / run.config).exists()
            assert sum(map(run.matches, known)) == 1
    args = argparse.Namespace(iters=7, threads=1, clock='cpu', device='cpu')
    text = page.read_text()
    assert measured(benchmark_page.filled(text, known, args)) == measured(text)
    counts = {name: len(runs) for name, runs in benchmark_page.RUNS.items()}
    # The methods have a second table, of their targets.
    assert len(measured(text)) == sum(counts.values()) + counts['methods']
