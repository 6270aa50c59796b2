import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.hooks import LoggerHook

from kdtoolbox.hooks import LossBalanceHook, LossWeightHook

Toy = SimpleNamespace
BACKENDS = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
TERMS = ('foreground', 'background', 'attention', 'relation')


@pytest.fixture(scope='module')
def losses() -> dict:
    wires = dict(student='student.fpn', teacher='teacher.fpn')
    return dict(
        loss_cwd=dict(type='CWDLoss', **wires),
        loss_fgd=dict(type='FGDLoss', channels=8, num_levels=3, **wires),
    )


@pytest.mark.e2e
def test_all_backends_get_terms_weights_and_shares(
    toy: Toy, make_runner: Callable, tmp_path: Path, losses: dict
) -> None:
    # It takes a second to import.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    balance = LossBalanceHook(
        shares=dict(loss_fgd=0.9), band=0.01, interval=2, max_change=1.5
    )
    runner = make_runner(
        toy.distiller(toy.gfl(), losses=losses),
        train_cfg=dict(by_epoch=False, max_iters=4),
        visualizer=dict(type='Visualizer', vis_backends=BACKENDS),
        log_processor=dict(by_epoch=False, window_size=10),
    )
    hooks = [balance, LossWeightHook('loss_cwd', warmup=4), LoggerHook(interval=1)]
    runner.register_custom_hooks(hooks)
    runner.train()
    runner.visualizer.close()

    [log] = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    written = {key: [line.get(key) for line in lines] for key in lines[-1]}
    assert written['weight/loss_cwd'] == [0.25, 0.5, 0.75, 1]
    assert written['weight/loss_fgd'] == [1, 1, 1.5, 1.5]
    first, *rest = written['share/loss_fgd']
    assert first is None
    assert rest[0] == rest[1] != rest[2]
    # A number of a hook is no loss.
    names = [key for key in written if key.startswith('loss_')]
    assert {f'loss_fgd.{term}' for term in TERMS} <= {*names}
    for iteration, total in enumerate(written['loss']):
        own = sum(written[name][iteration] for name in names)
        assert total == pytest.approx(own, rel=1e-4)

    events = EventAccumulator(str(log.parent))
    events.Reload()
    for name in ('weight/loss_cwd', 'weight/loss_fgd', 'share/loss_fgd', *names):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [
            (step, value)
            for step, value in enumerate(written[name], 1)
            if value is not None
        ]
        assert [step for step, _ in shown] == [step for step, _ in expected]
        assert [value for _, value in shown] == pytest.approx(
            [value for _, value in expected], rel=1e-5
        )
