import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from kdtoolbox.distillers import gradients
from kdtoolbox.distillers.finite import NonFiniteError
from kdtoolbox.distillers.gradients import finite_gradients
from kdtoolbox.hooks import FiniteWeightsHook, finite_weights
from kdtoolbox.runs.mixed_precision import AutocastOptimWrapper

ROOT = Path(__file__).parents[2]
Toy = SimpleNamespace
CLIP = dict(max_norm=1.0)
KEY = 'student.backbone.conv1.weight'


class Root(nn.Module):
    """A loss of 0 with a gradient of NaN."""

    loss_weight = 1.0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - student.detach()).pow(2).sum().sqrt()


class SoundOnce(Root):
    """A loss with a gradient of NaN in a single call, counted from 0."""

    def __init__(self, broken: int) -> None:
        super().__init__()
        self.broken, self.calls = broken, 0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.calls += 1
        if self.calls - 1 == self.broken:
            return super().forward(student, teacher)
        return 0 * student.sum()


class Remember(Hook):
    """Keeps a copy of the weights after `init_weights`."""

    def before_train(self, runner: Any) -> None:
        runner.before = copy.deepcopy(dict(runner.model.named_parameters()))


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return `AmpOptimWrapper`, patched to run on a CPU."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{module}.GradScaler', partial(torch.amp.GradScaler, 'cpu'))

    @contextmanager
    def autocast(dtype: None) -> Iterator[None]:
        with torch.autocast('cpu', torch.float16):
            yield

    monkeypatch.setattr('mmengine.runner.amp.autocast', autocast)
    return AmpOptimWrapper


@pytest.fixture
def start(toy: Toy, make_runner: Callable) -> Callable[..., Any]:
    """Return a function that makes a runner with the hook and with one more loss."""

    def start(
        broken: nn.Module | None,
        kind: Callable = OptimWrapper,
        optimizer: dict | None = None,
        **options: Any,
    ) -> Any:
        torch.manual_seed(0)
        runner = make_runner(toy.distiller(toy.gfl()), randomness=dict(seed=0))
        model = runner.model
        if broken is not None:
            model.losses['loss_root'] = broken
            ends = dict(student='student.fpn', teacher='teacher.fpn')
            model.wiring.comparisons['loss_root'] = ends
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, **(optimizer or {}))
        runner.optim_wrapper = kind(optimizer=sgd, **options)
        runner.register_hook(FiniteWeightsHook())
        runner.register_hook(Remember())
        return runner

    return start


def refused(runner: Any) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    return caught.value


def assert_unmoved(runner: Any) -> None:
    assert len(runner.before) > 20
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, runner.before[name]), name


@pytest.mark.parametrize('kind', [OptimWrapper, AutocastOptimWrapper])
@pytest.mark.parametrize('clip', [None, CLIP, dict(type='value', clip_value=1.0)])
def test_a_gradient_that_is_not_finite_is_reported_and_changes_no_weight(
    start: Callable, tmp_path: Path, kind: Callable, clip: dict | None
) -> None:
    # mmengine removes entries from its arguments.
    runner = start(Root(), kind, clip_grad=copy.copy(clip))
    error = refused(runner)
    message = str(error)
    assert message.startswith(
        'model.losses.loss_root: the gradient of this loss is not '
    )
    assert 'student.backbone (' in message
    assert 'student.neck (' in message
    assert 'No weight has moved in this step; ' in message
    for sound in ('loss_cwd', 'loss_cls', 'student.bbox_head ('):
        assert sound not in message
    assert_unmoved(runner)
    assert not list(tmp_path.glob('*.pth'))
    error.write(tmp_path, 1)
    report = json.loads((tmp_path / 'nonfinite_iter_1_rank_0.json').read_text())
    assert len(report['samples']) == 1
    broken = {x['name'] for x in report['tensors'] if x['nan']}
    assert f'gradient of {KEY}' in broken


def test_a_task_loss_of_the_student_is_named(toy: Toy, make_runner: Callable) -> None:
    runner = make_runner(toy.gfl()['model'])
    loss = runner.model.loss

    def broken(*args: Any) -> dict:
        losses = loss(*args)
        zero = losses['loss_cls'][0]
        return losses | dict(loss_root=(zero - zero.detach()).square().sqrt())

    runner.model.loss = broken
    runner.register_hook(FiniteWeightsHook())
    message = str(refused(runner))
    assert message.startswith('the loss loss_root: the gradient')
    assert 'bbox_head (' in message


def test_each_of_several_optimizers_is_checked(start: Callable) -> None:
    runner = start(Root())
    model = runner.model
    parts = dict(neck=model.student.neck, backbone=model.student.backbone)
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.01))
        for name, part in parts.items()
    }
    runner.optim_wrapper = OptimWrapperDict(**wrappers)

    def train_step(data: Any, optim_wrapper: Any) -> dict:
        data = model.data_preprocessor(data, True)
        total, log = model.parse_losses(model(**data, mode='loss'))
        optim_wrapper['backbone'].update_params(total)
        return log

    model.train_step = train_step
    assert 'loss_root' in str(refused(runner))
    assert_unmoved(runner)


@pytest.mark.parametrize(('broken', 'iteration'), [(0, 1), (3, 1)])
def test_accumulated_gradients_are_checked_at_the_update(
    start: Callable, broken: int, iteration: int
) -> None:
    """The loss has three levels: the first call is of batch 1, the fourth of 2."""
    runner = start(SoundOnce(broken), accumulative_counts=2)
    message = str(refused(runner))
    # The second call of the loss, for the explanation, has a finite gradient.
    assert message.startswith('the gradients of this update are not finite in student.')
    assert runner.iter == iteration
    assert_unmoved(runner)


def test_the_hook_does_not_change_a_finite_training(start: Callable) -> None:
    states = []
    for hook in (True, False):
        runner = start(None)
        if not hook:
            runner._hooks = [
                x for x in runner.hooks if not isinstance(x, FiniteWeightsHook)
            ]
        runner.train()
        states.append(runner.model.student.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert not torch.equal(states[0]['backbone.conv1.weight'], runner.before[KEY])


def test_the_hook_removes_its_handles_after_a_run(start: Callable) -> None:
    runner = start(None)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not runner.model.data_preprocessor._forward_hooks
    [hook] = [x for x in runner.hooks if isinstance(x, FiniteWeightsHook)]
    assert hook._batch is None


# A loss scaler.


def test_a_loss_scaler_still_skips_an_overflow(
    start: Callable, float16: Callable
) -> None:
    scale = dict(init_scale=2.0**40, backoff_factor=2.0**-32)
    runner = start(None, float16, loss_scale=scale)
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**8
    assert not torch.equal(
        dict(runner.model.named_parameters())[KEY], runner.before[KEY]
    )


@pytest.mark.parametrize('scale', ['dynamic', 4.0])
@pytest.mark.parametrize('fused', [False, True])
def test_a_loss_scaler_that_skips_every_update_is_stopped(
    start: Callable,
    float16: Callable,
    monkeypatch: pytest.MonkeyPatch,
    scale: str | float,
    fused: bool,
) -> None:
    monkeypatch.setattr(finite_weights, 'PATIENCE', 2)
    runner = start(Root(), float16, dict(fused=fused), loss_scale=scale)
    message = str(refused(runner))
    assert message.startswith(
        'the loss scaler has skipped 3 updates in a row. model.losses.loss_root: '
    )
    assert runner.iter == 2
    assert_unmoved(runner)


def test_a_scaler_that_is_switched_off_checks_nothing(
    start: Callable, float16: Callable
) -> None:
    runner = start(Root(), float16, loss_scale=dict(enabled=False))
    assert str(refused(runner)).startswith('model.losses.loss_root: ')
    assert_unmoved(runner)


# The check of the gradients alone.


def optimizer_of(*grads: Tensor) -> torch.optim.Optimizer:
    weights = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in grads]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    groups = [dict(params=[weight]) for weight in weights]
    return torch.optim.SGD(
        [*groups, dict(params=[nn.Parameter(torch.ones(2))])], lr=1.0
    )


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_one_gradient_of_any_type_is_found(dtype: torch.dtype, value: float) -> None:
    # The norm of these gradients overflows.
    largest = torch.full((3, 40), torch.finfo(dtype).max, dtype=dtype)
    sound = torch.ones(2)
    assert finite_gradients(optimizer_of(sound, largest))
    largest[1, 2] = value
    assert not finite_gradients(optimizer_of(sound, largest))
    assert not finite_gradients(optimizer_of(sound, largest.to_sparse()))


def test_the_check_of_gradients_syncs_the_device_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = []
    read = Tensor.__bool__
    monkeypatch.setattr(Tensor, '__bool__', lambda x: reads.append(x) or read(x))
    assert finite_gradients(optimizer_of(*torch.ones(9, 5)))
    assert len(reads) == 1


def test_the_norm_of_clip_grad_is_reused(
    start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite_weights, 'finite_gradients', None)
    start(None, clip_grad=dict(CLIP)).train()
    with pytest.raises(TypeError):
        start(None).train()


def test_a_norm_that_overflows_in_clip_grad_raises(
    start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping by an infinite norm would set all gradients to 0."""

    def overflowing(gradient: Tensor) -> Tensor:
        return gradient.clamp(min=1) * 1e30

    runner = start(None, clip_grad=dict(CLIP))
    monkeypatch.setattr(gradients, '_sources', lambda *_: {})
    next(runner.model.student.parameters()).register_hook(overflowing)
    for parameter in runner.model.student.neck.parameters():
        parameter.register_hook(overflowing)
    assert str(refused(runner)).startswith('the norm of all gradients, as clip_grad')


# Checkpoints.


class Break(Hook):
    """Writes a NaN to a weight without a gradient."""

    def __init__(self, name: str) -> None:
        self.name = name

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 3:
            runner.model.state_dict()[self.name].view(-1)[0] = float('nan')


@pytest.mark.parametrize('name', [KEY, 'student.backbone.bn1.running_var'])
def test_a_checkpoint_with_a_weight_that_is_not_finite_is_not_saved(
    start: Callable, tmp_path: Path, name: str
) -> None:
    runner = start(None)
    runner.register_hook(Break(name))
    error = refused(runner)
    assert str(error).startswith('no checkpoint is written after 4 iterations, since ')
    assert name in str(error)
    assert [x['name'] for x in error.report['tensors']] == [name]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_1.pth']


@pytest.mark.e2e
def test_the_tool_stops_before_a_nan_and_resumes_from_what_is_finite(
    tmp_path: Path,
) -> None:
    from kdtoolbox.datasets import PRESETS, make_digit_scenes

    make_digit_scenes(tmp_path / 'data', PRESETS['det'], train=4, val=1, workers=1)
    (tmp_path / 'roots.py').write_text(
        'from kdtoolbox.registry import MODELS\n'
        'from torch import nn\n'
        '@MODELS.register_module()\n'
        'class RootLoss(nn.Module):\n'
        '    loss_weight = 1.0\n'
        '    calls = 0\n'
        '    def forward(self, student, teacher):\n'
        '        self.calls += 1\n'
        '        if self.calls < 14: return 0 * student.sum()\n'
        '        return (student - student.detach()).pow(2).sum().sqrt()\n'
    )
    config = tmp_path / 'root.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/det_distilled.py'\n"
        "custom_imports = dict(imports=['roots'])\n"
        f"root = dict(data_root='{tmp_path}/data/')\n"
        "ends = dict(student='student.fpn', teacher='teacher.fpn')\n"
        "model = dict(losses=dict(loss_root=dict(ends, type='kdtoolbox.RootLoss')))\n"
        'train_dataloader = dict(batch_size=2, num_workers=0, dataset=root,\n'
        '    persistent_workers=False)\n'
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_cfg = dict(max_iters=6, val_interval=9)\n'
        'default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1))\n'
    )

    def train(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, 'tools/train.py', str(config), *options]
        path = f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'
        return subprocess.run(
            [*command, '--work-dir', str(tmp_path / 'run')],
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path),
            capture_output=True,
            text=True,
        )

    done = train()
    assert done.returncode == 1
    assert 'NonFiniteError: model.losses.loss_root: the gradient' in done.stderr
    [report] = (tmp_path / 'run').glob('nonfinite*')
    assert done.stderr.rstrip().endswith(f'The batch and all ranges are in {report}')
    assert len(json.loads(report.read_text())['samples']) == 2
    saved = sorted((tmp_path / 'run').glob('iter_*.pth'))
    assert len(saved) >= 2
    for path in saved:
        state = torch.load(path, weights_only=False)['state_dict']
        assert all(x.isfinite().all() for x in state.values())
    # A tool without the hook would have saved such a checkpoint.
    content = torch.load(saved[-1], weights_only=False)
    content['state_dict'][KEY][:] = float('nan')
    torch.save(content, saved[-1])
    done = train('--resume')
    output = ' '.join((done.stdout + done.stderr).split())
    assert f"'{saved[-1]}' cannot be resumed from: it has NaN or Inf in {KEY}" in output
    assert f"'{saved[-2]}' is resumed from instead" in output
