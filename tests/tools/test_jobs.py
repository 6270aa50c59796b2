import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def jobs() -> ModuleType:
    spec = spec_from_file_location('jobs', ROOT / 'tools/jobs.py')
    module = module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'jobs', module)
        spec.loader.exec_module(module)
        patch.setattr(module, '_POLL_SECONDS', 0.05)
        yield module


def test_a_job_gets_its_work_dir_and_one_thread(
    jobs: ModuleType, tmp_path: Path
) -> None:
    code = 'import os, sys; print(os.getcwd(), os.environ["OMP_NUM_THREADS"], sys.argv)'
    job = jobs.Job('print', tmp_path / 'run', ('-c', code, '--flag'))
    jobs.run_jobs([job], 'do')
    expected = ['-c', '--flag', '--work-dir', str(tmp_path / 'run')]
    assert job.log.read_text() == f'{ROOT} 1 {expected}\n'


def test_all_jobs_run_and_a_failure_shows_the_end_of_the_output(
    jobs: ModuleType, tmp_path: Path
) -> None:
    good = jobs.Job('good', tmp_path / 'good', ('-c', 'print(1)'))
    bad = jobs.Job('bad', tmp_path / 'bad', ('-c', 'raise SystemExit("no disk")'))
    with pytest.raises(RuntimeError, match=r'bad failed; the end of .*\nno disk'):
        jobs.run_jobs([good, bad], 'do')
    assert good.log.exists()


def test_a_failure_stops_the_other_jobs(
    jobs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.os, 'cpu_count', lambda: 2)
    slow = jobs.Job('slow', tmp_path / 'slow', ('-c', 'import time; time.sleep(600)'))
    bad = jobs.Job('bad', tmp_path / 'bad', ('-c', 'raise SystemExit(1)'))
    with pytest.raises(RuntimeError, match='bad failed'):
        jobs.run_jobs([slow, bad], 'do')
    assert slow.process.poll() is not None


def test_an_unfinished_line_of_the_log_is_left_out(
    jobs: ModuleType, tmp_path: Path
) -> None:
    for run, last in (('20260101_000000', 900), ('20260102_000000', 75)):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        lines = [json.dumps(dict(iter=last - 25)), json.dumps(dict(iter=last))]
        (folder / 'scalars.json').write_text('\n'.join([*lines, '{"iter": 1']))
    job = jobs.Job('train', tmp_path, ())
    # The newest folder counts.
    assert job.iteration() == 75
    assert jobs.Job('train', tmp_path / 'empty', ()).iteration() == 0


@pytest.mark.parametrize('tool', ['demo', 'make_teachers', 'run_benchmark', 'soak'])
def test_no_tool_that_uses_jobs_starts_processes_itself(tool: str) -> None:
    source = (ROOT / f'tools/{tool}.py').read_text()
    assert 'from jobs import' in source
    assert 'subprocess' not in source


@pytest.mark.e2e
@pytest.mark.parametrize('tool', ['demo', 'make_teachers', 'run_benchmark', 'soak'])
def test_the_tools_find_jobs_from_any_folder(tool: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / f'tools/{tool}.py'), '--help']
    assert b'usage' in subprocess.check_output(command, cwd=tmp_path)
