"""Training steps on a GPU give the losses of a CPU."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kinds import KINDS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from pairs import PAIRS, build, train

from kdtoolbox.recorders import heed_hooks
from kdtoolbox.runs.mixed_precision import use_mixed_precision

Toy = SimpleNamespace
pytestmark = [pytest.mark.gpu, pytest.mark.e2e]
every_pair = pytest.mark.parametrize('name', PAIRS)
# Two steps of some twenty layers round in another order.
ROUNDED = 1e-3
# What half precision may change in a loss.
HALVED = 5e-2


def assert_logs(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for log, goal in zip(found, expected, strict=True):
        assert log == pytest.approx(goal, rel=ROUNDED)


@every_pair
def test_losses_equal_those_on_a_cpu(toy: Toy, device: str, name: str) -> None:
    model = build(toy, name)
    moved = copy.deepcopy(model).to(device)
    assert_logs(train(toy, moved), train(toy, model))
    weights = [*moved.parameters(), *moved.teacher.model.parameters()]
    assert {weight.device.type for weight in weights} == {device}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_distiller_trains(toy: Toy, device: str, kind: str) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]().to(device).train()
    logs = train(toy, model)
    assert torch.tensor([[*log.values()] for log in logs]).isfinite().all()


# mmcv's RoIAlign and deformable convolutions give wrong numbers in this layout.
@pytest.mark.parametrize('name', ['GFL', 'PSPNet'])
def test_channels_last(toy: Toy, device: str, name: str) -> None:
    plain = build(toy, name).to(device)
    laid = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    layouts = []
    laid.student.backbone.layer2.register_forward_hook(
        lambda *args: layouts.append(
            args[-1].is_contiguous(memory_format=torch.channels_last)
        )
    )
    assert_logs(train(toy, laid), train(toy, plain))
    assert layouts == [True] * 2


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', ['GFL', 'PSPNet'])
def test_a_teacher_of_half_precision(
    toy: Toy, device: str, name: str, dtype: str
) -> None:
    plain = build(toy, name)
    halved = build(toy, name, dtype=dtype, channels_last=True).to(device)
    [found], [expected] = (train(toy, model, steps=1) for model in (halved, plain))
    assert found == pytest.approx(expected, rel=HALVED)


# mmcv's RoIAlign has no bfloat16.
@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        ('GFL', 'float16'),
        ('GFL', 'bfloat16'),
        ('Faster R-CNN', 'float16'),
        ('PSPNet', 'float16'),
        ('PSPNet', 'bfloat16'),
    ],
)
def test_mixed_precision(toy: Toy, device: str, name: str, dtype: str) -> None:
    """The flag `--amp` keeps the losses of the distillation, and the weights move."""
    model = build(toy, name)
    moved = copy.deepcopy(model).to(device)
    optimizer = dict(type='SGD', lr=0.01)
    config = Config(dict(optim_wrapper=dict(optimizer=optimizer, dtype=dtype)))
    use_mixed_precision(config)
    wrapper = build_optim_wrapper(moved, config.optim_wrapper)
    # The scale of float16 may be too large in the first steps, which are skipped.
    logs, [expected] = train(toy, moved, wrapper, steps=12), train(toy, model, steps=1)
    for loss in expected:
        if any(key in loss for key in model.losses):
            assert logs[0][loss] == pytest.approx(expected[loss], rel=HALVED), loss
    assert torch.tensor([[*log.values()] for log in logs]).isfinite().all()
    assert {weight.dtype for weight in moved.parameters()} == {torch.float32}
    assert logs[-1]['loss'] < logs[0]['loss']


@pytest.fixture
def fresh() -> Iterator[None]:
    config: Any = torch._dynamo.config
    before = config.skip_nnmodule_hook_guards
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    config.skip_nnmodule_hook_guards = before


@pytest.mark.usefixtures('fresh')
def test_a_student_that_inductor_compiles(toy: Toy, device: str) -> None:
    heed_hooks()
    plain = build(toy, 'PSPNet').to(device)
    compiled = copy.deepcopy(plain)
    compiled.student.compile(backend='inductor')
    assert_logs(train(toy, compiled), train(toy, plain))
    assert torch._dynamo.utils.counters['inductor']
