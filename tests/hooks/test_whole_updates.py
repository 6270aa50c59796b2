from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdtoolbox.hooks import WholeUpdatesHook

Toy = SimpleNamespace


@pytest.fixture
def run(toy: Toy, make_runner: Callable) -> Callable:
    """Return a function that trains two iterations per epoch with the hook."""

    def run(counts: int, epochs: int = 2, **arguments: Any) -> Any:
        train_cfg = dict(by_epoch=True, max_epochs=epochs)
        runner = make_runner(toy.gfl()['model'], train_cfg=train_cfg, **arguments)
        runner.optim_wrapper['accumulative_counts'] = counts
        runner.cfg.optim_wrapper = runner.optim_wrapper
        runner.register_hook(WholeUpdatesHook())
        runner.train()
        return runner

    return run


BETWEEN = dict(by_epoch=False, interval=3)


@pytest.mark.parametrize(
    ('counts', 'checkpoint', 'multiple'),
    [
        (3, dict(by_epoch=True, interval=1), 3),
        (4, dict(by_epoch=True, interval=1), 2),
        (2, BETWEEN, 2),
        (2, dict(by_epoch=False, interval=2, save_begin=1), 2),
    ],
)
def test_no_checkpoint_falls_between_two_updates_of_accumulated_gradients(
    run: Callable, tmp_path: Path, counts: int, checkpoint: dict, multiple: int
) -> None:
    with pytest.raises(ValueError, match=f'set them to multiples of {multiple}$'):
        run(counts, checkpoint=checkpoint)
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    ('counts', 'checkpoint', 'saved'),
    [
        (1, BETWEEN, ['iter_3.pth', 'iter_4.pth']),
        (2, dict(by_epoch=True, interval=1), ['epoch_1.pth', 'epoch_2.pth']),
        (4, dict(by_epoch=True, interval=2), ['epoch_2.pth']),
        # The last iteration updates with the gradients accumulated so far.
        (3, dict(by_epoch=True, interval=-1), ['epoch_2.pth']),
    ],
)
def test_other_intervals_are_allowed(
    run: Callable, tmp_path: Path, counts: int, checkpoint: dict, saved: list[str]
) -> None:
    run(counts, checkpoint=checkpoint)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == saved


def test_resuming_between_two_updates_is_refused(run: Callable, tmp_path: Path) -> None:
    run(1, checkpoint=BETWEEN)
    source = str(tmp_path / 'iter_3.pth')
    with pytest.raises(ValueError, match='resumed after 3 iterations, between two'):
        run(2, load_from=source, resume=True, checkpoint=dict(interval=2))
