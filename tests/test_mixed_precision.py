"""Autocast, the loss scale and accumulated gradients keep the results."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from rounding import rounding
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.distillers import Distiller
from kdtoolbox.runs.mixed_precision import AutocastOptimWrapper, use_mixed_precision

ROOT = Path(__file__).parents[1]
Toy = SimpleNamespace
MAP_LOSSES = ('CWD', 'PKD', 'FitNet', 'SP', 'SSIM', 'Affinity', 'ICKD', 'RKD')
SQUARE = ((64, 64), (64, 64))
# Convolutions of the toys, one behind the other. Each rounds what goes forward and the
# gradient that comes back.
LAYERS = 21


def build(toy: Toy, model: str, names: tuple[str, ...] = MAP_LOSSES) -> Distiller:
    wires = dict(student='student.fpn', teacher='teacher.fpn')
    losses = {f'loss_{name}': dict(wires, type=f'{name}Loss') for name in names}
    torch.manual_seed(0)
    return toy.build_distiller(getattr(toy, model)(), losses=losses).train()


def batch(toy: Toy, model: str, sizes: tuple = SQUARE, seed: int = 0) -> dict:
    make = toy.seg_data if model == 'segmentor' else toy.det_data
    return make(sizes, seed=seed)


def losses_of(distiller: Distiller, wrapper: OptimWrapper, data: dict) -> dict:
    torch.manual_seed(0)
    with wrapper.optim_context(distiller):
        inputs = distiller.data_preprocessor(data, True)
        losses = distiller(**inputs, mode='loss')
    kept = {name: value for name, value in losses.items() if 'loss' in name}
    return {k: v if isinstance(v, Tensor) else sum(v) for k, v in kept.items()}


def wrap(kind: Callable, model: nn.Module, **options: Any) -> Any:
    return kind(optimizer=torch.optim.SGD(model.parameters(), lr=0.01), **options)


# bfloat16 without a scale.


@pytest.mark.parametrize('model', ['gfl', 'segmentor'])
def test_half_precision_losses_stay_within_one_percent_of_float32(
    toy: Toy, model: str
) -> None:
    """`check_loss` tests each loss alone; here the whole forward runs in bfloat16."""
    distiller = build(toy, model)
    copied = copy.deepcopy(distiller)
    expected = losses_of(distiller, wrap(OptimWrapper, distiller), batch(toy, model))
    dtypes = []
    copied.student.backbone.layer1.register_forward_hook(
        lambda _, inputs, output: dtypes.append(output.dtype)
    )
    wrapper = wrap(AutocastOptimWrapper, copied)
    found = losses_of(copied, wrapper, batch(toy, model))
    assert dtypes == [torch.bfloat16]
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize('model', ['gfl', 'segmentor'])
def test_bfloat16_trains(toy: Toy, model: str) -> None:
    distiller = build(toy, model, ('CWD',))
    wrapper = wrap(AutocastOptimWrapper, distiller, clip_grad=dict(max_norm=1.0))
    logs = [distiller.train_step(batch(toy, model), wrapper) for _ in range(6)]
    assert logs[-1]['loss_CWD'] < logs[0]['loss_CWD']
    assert {p.dtype for p in distiller.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in distiller.parameters())


def test_an_op_without_bfloat16_says_so(toy: Toy) -> None:
    distiller = build(toy, 'faster_rcnn', ('CWD',))
    wrapper = wrap(AutocastOptimWrapper, distiller)
    with pytest.raises(ValueError, match='Train without --amp'):
        distiller.train_step(batch(toy, 'faster_rcnn'), wrapper)


def test_other_errors_are_not_changed(toy: Toy) -> None:
    wrapper = wrap(AutocastOptimWrapper, nn.Linear(2, 2))
    with (
        pytest.raises(RuntimeError, match='^another$'),
        wrapper.optim_context(nn.Linear(2, 2)),
    ):
        raise RuntimeError('another')


# The config after `--amp`.

SGD = dict(type='SGD', lr=0.01)


def amp(**optim_wrapper: Any) -> dict:
    cfg = Config(dict(optim_wrapper=optim_wrapper))
    use_mixed_precision(cfg)
    return cfg.optim_wrapper.to_dict()


@pytest.mark.parametrize(
    'wrapper',
    [dict(), dict(type='OptimWrapper'), dict(type='AmpOptimWrapper', loss_scale=2.0)],
)
def test_amp_on_a_cpu(wrapper: dict) -> None:
    made = amp(optimizer=SGD, accumulative_counts=2, **wrapper)
    kind = 'kdtoolbox.AutocastOptimWrapper'
    assert made == dict(type=kind, optimizer=SGD, accumulative_counts=2)
    assert type(build_optim_wrapper(nn.Linear(2, 2), made)) is AutocastOptimWrapper


def test_amp_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('kdtoolbox.runs.mixed_precision.get_device', lambda: 'cuda')
    kind = dict(type='AmpOptimWrapper', optimizer=SGD)
    assert amp(optimizer=SGD, type='OptimWrapper') == dict(kind, loss_scale='dynamic')
    assert amp(**kind, loss_scale=2.0) == dict(kind, loss_scale=2.0)


@pytest.mark.parametrize(
    'wrapper',
    [
        dict(type='ApexOptimWrapper', optimizer=SGD),
        dict(constructor='Two', generator=dict(optimizer=SGD)),
    ],
    ids=['another kind', 'several optimizers'],
)
def test_amp_refuses_what_it_would_break(wrapper: dict) -> None:
    with pytest.raises(ValueError, match='--amp: expected optim_wrapper'):
        amp(**wrapper)


@pytest.mark.e2e
def test_the_tool_trains_in_bfloat16_on_a_cpu(tmp_path: Path) -> None:
    data = tmp_path / 'digits'
    make_digit_scenes(data, PRESETS['det'], train=8, val=4, workers=1)
    command = [sys.executable, 'tools/train.py', 'configs/digits/det_distilled.py']
    command += ['--amp', '--work-dir', str(tmp_path / 'run'), '--cfg-options']
    command += [f'train_dataloader.dataset.data_root={data}/', 'val_cfg=None']
    command += ['val_dataloader=None', 'val_evaluator=None', 'train_cfg.max_iters=2']
    command += ['train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    assert 'kdtoolbox.AutocastOptimWrapper' in output
    weights = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)
    assert all(w.isfinite().all() for w in weights['state_dict'].values())


# float16 with a scale, on a CPU in place of a GPU.


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return `AmpOptimWrapper`, patched to accept a CPU as a GPU."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{module}.GradScaler', partial(torch.amp.GradScaler, 'cpu'))

    @contextmanager
    def autocast(dtype: None) -> Any:
        with torch.autocast('cpu', torch.float16):
            yield

    monkeypatch.setattr('mmengine.runner.amp.autocast', autocast)
    return AmpOptimWrapper


def gradients_at_step(model: nn.Module, wrapper: OptimWrapper) -> dict[str, Tensor]:
    """Return a dict that the next step of the optimizer fills with its gradients."""
    seen: dict[str, Tensor] = {}

    def see(*_: Any) -> None:
        seen.update({n: p.grad.clone() for n, p in model.named_parameters()})

    wrapper.optimizer.register_step_pre_hook(see)
    return seen


def assert_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    """Compare tensors with a tolerance relative to their largest entry."""
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, gradient in expected.items():
        atol = tolerance * float(gradient.abs().max())
        difference = float((found[name] - gradient).abs().max())
        assert difference <= atol, f'{name}: not close, by {difference} > {atol}'


@pytest.mark.parametrize('model', ['gfl', 'segmentor'])
def test_the_loss_scale_cancels_out(toy: Toy, float16: Callable, model: str) -> None:
    seen = []
    for scale in (256.0, 2048.0):
        distiller = build(toy, model, ('CWD',))
        wrapper = wrap(float16, distiller, loss_scale=dict(init_scale=scale))
        seen.append(gradients_at_step(distiller, wrapper))
        torch.manual_seed(0)
        log = distiller.train_step(batch(toy, model), wrapper)
        assert {value.dtype for k, value in log.items() if 'loss' in k} == {
            torch.float32
        }
    assert_gradients(*seen, tolerance=rounding(torch.float16, LAYERS))


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=1.0)], ids=['free', 'clip'])
def test_an_overflow_skips_the_step_and_lowers_the_scale(
    toy: Toy, float16: Callable, clip_grad: dict | None
) -> None:
    distiller = build(toy, 'gfl', ('CWD',))
    scale = dict(init_scale=2.0**40, backoff_factor=2.0**-32)
    wrapper = wrap(float16, distiller, loss_scale=scale, clip_grad=clip_grad)
    before = copy.deepcopy(dict(distiller.named_parameters()))
    log = distiller.train_step(batch(toy, 'gfl'), wrapper)
    assert all(value.isfinite() for value in log.values())
    assert wrapper.loss_scaler.get_scale() == 2.0**8
    assert all(torch.equal(p, before[k]) for k, p in distiller.named_parameters())
    distiller.train_step(batch(toy, 'gfl'), wrapper)
    after = dict(distiller.named_parameters())
    assert not torch.equal(
        after['student.neck.fpn_convs.0.conv.weight'],
        before['student.neck.fpn_convs.0.conv.weight'],
    )
    assert all(p.isfinite().all() for p in after.values())


def test_a_resumed_run_has_the_scale_of_the_interrupted_one(
    toy: Toy, float16: Callable, make_runner: Callable, tmp_path: Path
) -> None:
    states, scales = [], []
    for resume in (False, True):
        source = str(tmp_path / 'epoch_1.pth') if resume else None
        runner = make_runner(
            toy.distiller(toy.gfl()),
            load_from=source,
            resume=resume,
            # The teacher has no checkpoint here.
            randomness=dict(seed=0),
        )
        # It doubles in each step, from another start in the resumed run.
        scale = dict(init_scale=3.0 if resume else 4.0, growth_interval=1)
        runner.optim_wrapper = wrap(float16, runner.model, loss_scale=scale)
        runner.train()
        states.append(runner.model.student.state_dict())
        scales.append(runner.optim_wrapper.loss_scaler.get_scale())
    assert scales == [4.0 * 2**4] * 2
    expected, found = states
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# Accumulated gradients.


def separable(toy: Toy, names: tuple[str, ...]) -> Distiller:
    """A segmentor without operations across images."""
    distiller = build(toy, 'segmentor', names)
    for module in distiller.modules():
        if isinstance(module, _BatchNorm | nn.Dropout2d):
            module.eval()
            module.train = lambda mode: None
    return distiller


def accumulated(
    toy: Toy, wrapper: Callable, parts: int, names: tuple[str, ...] = ('CWD',)
) -> dict[str, Tensor]:
    """Return the gradients of a batch of four images, cut into parts."""
    distiller = separable(toy, names)
    if wrapper is OptimWrapper:
        distiller.double()
    wrapper = wrap(wrapper, distiller, accumulative_counts=parts)
    seen = gradients_at_step(distiller, wrapper)
    data = batch(toy, 'segmentor', SQUARE * 2)
    for part in range(parts):
        assert not seen
        cut = slice(part * 4 // parts, (part + 1) * 4 // parts)
        distiller.train_step({k: v[cut] for k, v in data.items()}, wrapper)
    return seen


# mmseg adds the eps of float32 to the number of pixels, once for each part. This is no
# rounding error, and it matters more where the gradients of two losses cancel.
PIXELS = 64 * 64
COUNTED = 1000 * torch.finfo(torch.float32).eps / PIXELS


@pytest.mark.parametrize('parts', [2, 4])
@pytest.mark.parametrize(
    ('wrapper', 'tolerance'),
    [
        (OptimWrapper, COUNTED + rounding(torch.float64, 4 * PIXELS * LAYERS)),
        (AutocastOptimWrapper, rounding(torch.bfloat16, LAYERS)),
    ],
    ids=['float64', 'bfloat16'],
)
def test_accumulated_gradients_equal_those_of_the_large_batch(
    toy: Toy, wrapper: Callable, tolerance: float, parts: int
) -> None:
    expected = accumulated(toy, wrapper, 1)
    assert_gradients(accumulated(toy, wrapper, parts), expected, tolerance)


def test_losses_of_the_whole_batch_differ_when_accumulated(toy: Toy) -> None:
    """PKD standardises a channel over all images of a forward."""
    pair = [accumulated(toy, OptimWrapper, parts, ('PKD',)) for parts in (1, 2)]
    with pytest.raises(AssertionError, match='not close'):
        assert_gradients(pair[1], pair[0], 1e-2)
