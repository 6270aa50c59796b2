import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def soak() -> Any:
    spec = spec_from_file_location('soak', ROOT / 'tools/soak.py')
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As when it runs as a script.
        patch.syspath_prepend(ROOT / 'tools')
        spec.loader.exec_module(module)
    return module


def lines(count: int = 100, **growth: float) -> list[dict]:
    level = dict(rss_mb=500.0, threads=3, files=9, hooks=0)
    return [
        dict(iter=25 * i, **{k: v + i * growth.get(k, 0) for k, v in level.items()})
        for i in range(1, count + 1)
    ]


def test_the_slope_of_the_memory_is_reported(soak: Any) -> None:
    report = soak.measure(lines(rss_mb=0.5), minutes=30)
    assert report['rss_mb_per_1000_iterations'] == pytest.approx(20)
    assert report['rss_mb_per_hour'] == pytest.approx(100)
    assert report['threads'] == [3, 3]


def test_growth_is_reported(soak: Any) -> None:
    report = soak.measure(lines(hooks=2), minutes=30)
    # The end of the first third after the warm-up, and the beginning of the last.
    assert report['hooks'] == [2 * 50, 2 * 76]


def test_fluctuation_is_no_growth(soak: Any) -> None:
    logged = lines()
    for line in logged[50::2]:
        line['files'] += 1
    before, after = soak.measure(logged, minutes=30)['files']
    assert after <= before


def test_threads_of_the_first_validation_are_no_growth(soak: Any) -> None:
    logged = lines()
    for line in logged:
        line['threads'] += line['iter'] > 1500
    assert soak.measure(logged, minutes=30)['threads'] == [3, 4]
    assert soak.measure(logged, minutes=30, interval=1500)['threads'] == [4, 4]


def test_too_short_a_run_is_refused(soak: Any) -> None:
    with pytest.raises(RuntimeError, match='too few'):
        soak.measure(lines(3), minutes=1)


@pytest.mark.e2e
def test_a_soak_finds_no_growth_of_hooks_and_threads_and_files(
    soak: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    seg_mend: str,
) -> None:
    data = tmp_path / 'digits'
    make_digit_scenes(data, PRESETS['seg'], train=8, val=2, workers=1)
    config = tmp_path / 'seg.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        f"root = dict(data_root='{data}/')\n"
        'train_dataloader = dict(batch_size=1, dataset=root)\n'
        'val_dataloader = dict(batch_size=2, dataset=root)\n'
        'test_dataloader = val_dataloader\n'
        'default_hooks = dict(logger=dict(interval=1))\n'
        'log_processor = dict(window_size=1)\n' + seg_mend
    )
    command = ['soak.py', str(config), '--minutes', '1', '--interval', '100']
    command += ['--work-dir', str(tmp_path / 'soak')]
    monkeypatch.setattr(sys, 'argv', command)
    soak.main()
    assert 'rss_mb_per_hour' in capsys.readouterr().out
    assert (tmp_path / 'soak/soak.json').exists()
