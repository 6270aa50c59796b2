"""The command line of new_config; tests/front_door/test_pairs.py trains its recipes."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
DIGITS = TOOLS.parent / 'configs/digits'
PAIR = ['--student', str(DIGITS / 'det_student.py')]
PAIR += ['--teacher', str(DIGITS / 'det_teacher.py')]
PAIR += ['--teacher-checkpoint', str(DIGITS / 'det_teacher.safetensors')]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(tool: str, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [tool, *arguments])
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as ended:
            return ended.code
    return 0


def test_a_recipe_is_written_beside_its_pair(tmp_path: Path) -> None:
    assert call('new_config.py', *PAIR, '--method', 'pkd') == 0
    text = (tmp_path / 'pkd_det_teacher_det_student.py').read_text()
    assert "type='PKDLoss'" in text
    assert f'checkpoint={str(DIGITS / "det_teacher.safetensors")!r}' in text


def test_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'mine.py').write_text('# mine')
    assert call('new_config.py', *PAIR, '--method', 'pkd', '-o', 'mine.py') == 2
    assert '--out mine.py exists' in capsys.readouterr().err
    assert (tmp_path / 'mine.py').read_text() == '# mine'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--method', 'fdg'], 'or fgd?'),
        (['--method', 'response'], 'fits two-stage detectors; the student is one of'),
        (['--method', 'pkd', '--at', 'nekc'], "has no module 'nekc'; nearest: neck"),
        (['--method', 'pkd', '-o', 'a.json'], 'a recipe is a .py file'),
        (['--method', 'pkd', '--teacher-checkpoint', 'a.pth'], "no file 'a.pth'"),
        ([], '--method missing; new_config.py --list'),
    ],
)
def test_refusals_leave_no_file(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call('new_config.py', *PAIR, *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert 'Traceback' not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
def test_losses_that_do_not_fit_leave_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retina = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    pair = ['--student', retina, '--teacher', retina, '--method', 'ld']
    assert call('new_config.py', *pair) == 2
    assert 'expected distributions' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_train_wants_a_config_or_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert call('train.py', 'a.py', *PAIR) == 2
    assert 'give a config or --student --teacher' in capsys.readouterr().err
    assert call('train.py') == 2
    assert '--student and --teacher and --method missing' in capsys.readouterr().err


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call('new_config.py', '--list') == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.split()[:1] == ['crosskd']]
    assert 'dense head' in line
