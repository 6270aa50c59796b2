from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from PIL import Image

from kdtoolbox.hooks import DistillationVisualizationHook

Toy = SimpleNamespace


class Watch(Hook):
    """Keep the losses and the number of observers of each iteration."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.before: list[int] = []
        self.after: list[int] = []

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.before.append(len(runner.model.observers))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: dict
    ) -> None:
        self.losses.append(outputs['loss'].item())
        self.after.append(len(runner.model.observers))


def run(toy: Toy, make_runner: Callable, folder: Path, *hooks: dict) -> Any:
    torch.manual_seed(0)
    wires = dict(student='student.fpn', teacher='teacher.fpn')
    losses = dict(
        loss_cwd=dict(type='CWDLoss', **wires),
        loss_fgd=dict(type='FGDLoss', channels=8, num_levels=3, **wires),
    )
    watch, kind = Watch(), dict(type='Visualizer')
    runner = make_runner(
        toy.distiller(toy.gfl(), losses=losses),
        train_cfg=dict(by_epoch=False, max_iters=4),
        custom_hooks=[*hooks, watch],
        visualizer=dict(vis_backends=[dict(type='LocalVisBackend')], **kind),
        work_dir=str(folder),
        randomness=dict(seed=0),
    )
    runner.train()
    return SimpleNamespace(watch=watch, model=runner.model)


def pictures(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.rglob('vis_image/*.png')}


@pytest.fixture(scope='module')
def hook() -> dict:
    return dict(type='kdtoolbox.DistillationVisualizationHook', interval=3)


@pytest.mark.e2e
def test_each_backend_gets_the_pictures_of_due_iterations(
    toy: Toy, make_runner: Callable, tmp_path: Path, hook: dict
) -> None:
    with_hook = run(toy, make_runner, tmp_path / 'a', hook)
    found = pictures(tmp_path / 'a')
    kinds = ('features_loss_cwd', 'features_loss_fgd', 'channels_loss_cwd')
    kinds += ('masks_loss_fgd', 'predictions')
    assert found.keys() == {f'{kind}_0_{step}.png' for kind in kinds for step in (1, 3)}
    for path in found.values():
        assert np.asarray(Image.open(path)).std() > 10
    assert with_hook.watch.before == [1, 0, 1, 0]
    assert with_hook.watch.after == [0] * 4
    # The training is the same as without the hook, in numbers and in modes.
    without = run(toy, make_runner, tmp_path / 'b')
    assert with_hook.watch.losses == without.watch.losses
    for name, value in without.model.state_dict().items():
        assert torch.equal(with_hook.model.state_dict()[name], value), name
    modes = [
        [module.training for module in each.model.modules()]
        for each in (with_hook, without)
    ]
    assert modes[0] == modes[1]
    assert not pictures(tmp_path / 'b')


@pytest.mark.e2e
def test_what_is_not_asked_for_is_not_drawn(
    toy: Toy, make_runner: Callable, tmp_path: Path, hook: dict
) -> None:
    hook = hook | dict(what=['predictions'], images=2, interval=9)
    run(toy, make_runner, tmp_path, hook)
    # The batches have one image each.
    assert list(pictures(tmp_path)) == ['predictions_0_1.png']


def test_other_processes_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = SimpleNamespace(iter=0, model=SimpleNamespace(observers=[]))
    hook = DistillationVisualizationHook()
    hook.before_train_iter(runner)
    assert len(runner.model.observers) == 1
    runner.model.observers.clear()
    monkeypatch.setattr('kdtoolbox.hooks.visualize.is_main_process', lambda: False)
    hook = DistillationVisualizationHook()
    hook.before_train_iter(runner)
    hook.after_train_iter(runner)
    assert not runner.model.observers


def test_a_plain_model_is_refused(toy: Toy, make_runner: Callable, hook: dict) -> None:
    runner = make_runner(toy.gfl()['model'], custom_hooks=[hook])
    with pytest.raises(ValueError, match='remove the hook from `custom_hooks`'):
        runner.train()


@pytest.mark.e2e
def test_parts_without_heads_are_drawn_without_predictions(
    toy: Toy, make_runner: Callable, tmp_path: Path, hook: dict
) -> None:
    model = toy.distiller(toy.gfl(), type='kdtoolbox.Pretrainer')
    runner = make_runner(model, custom_hooks=[hook])
    with pytest.raises(ValueError, match=r"predicts nothing; set `what=\['features', "):
        runner.train()
    runner = make_runner(model, custom_hooks=[hook | dict(what=['features'])])
    runner.train()
    assert 'features_loss_cwd_0_1.png' in pictures(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (dict(interval=0), '>= 1, got 0'),
        (dict(images=0), '>= 1, got 1000 and 0'),
        (dict(what=['feature']), r"got \['feature'\]"),
        (dict(what='masks'), 'as a list'),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistillationVisualizationHook(**arguments)
