"""Numbers, records and errors of a distillation are the same with torch.compile."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from rounding import rounding

from kdtoolbox.distillers import Distiller
from kdtoolbox.recorders import heed_hooks

ROOT = Path(__file__).parents[1]
Toy = SimpleNamespace
# Sums over the pixels of two images, in some ten layers and four steps.
ROUNDED = rounding(torch.float64, 2 * 64 * 64 * 10 * 4)
pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    config = torch._dynamo.config
    before = config.skip_nnmodule_hook_guards
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    config.skip_nnmodule_hook_guards = before


def shallow(toy: Toy) -> dict:
    """A segmentor that is quick to trace."""
    config = toy.segmentor()
    model = config['model']
    model['backbone'] |= dict(num_stages=1, strides=(1,), dilations=(1,))
    model['backbone'] |= dict(out_indices=(0,))
    head = dict(model['decode_head'], type='FCNHead', num_convs=1, in_channels=8)
    head |= dict(in_index=0)
    del model['auxiliary_head'], head['pool_scales']
    model['decode_head'] = head
    return config


def build(toy: Toy, source: str = 'backbone.layer1') -> Distiller:
    torch.manual_seed(0)
    recorders = dict(student=dict(fpn=source), teacher=dict(fpn='backbone.layer1'))
    return toy.build_distiller(shallow(toy), recorders=recorders).train()


def compile_step(distiller: Distiller) -> None:
    # As mmengine does for the key `compile` of a config.
    distiller.train_step = torch.compile(distiller.train_step, backend='eager')


def compile_student(distiller: Distiller) -> None:
    distiller.student.compile(backend='aot_eager')


WAYS = pytest.mark.parametrize('compile_it', [compile_step, compile_student])


def train(toy: Toy, distiller: Distiller, weights: list[float]) -> list[dict]:
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    wrapper, logs = OptimWrapper(optimizer), []
    for step, weight in enumerate(weights):
        distiller.losses['loss_cwd'].loss_weight = weight
        torch.manual_seed(step)
        log: Any = distiller.train_step(toy.seg_data(seed=step), wrapper)
        logs.append({name: float(value.detach()) for name, value in log.items()})
    return logs


@WAYS
def test_a_compiled_training_gives_the_numbers_of_a_plain_one(
    toy: Toy, compile_it: Callable
) -> None:
    """Also where recording begins and ends after the code was compiled."""
    heed_hooks()
    plain = build(toy).double()
    compiled = copy.deepcopy(plain)
    compile_it(compiled)
    weights = [0.0, 1.0, 0.5, 0.0]
    expected, found = (train(toy, model, weights) for model in (plain, compiled))
    assert [log['loss_cwd'] > 0 for log in found] == [weight > 0 for weight in weights]
    for goal, log in zip(expected, found, strict=True):
        assert log == pytest.approx(goal, rel=ROUNDED)
    state = compiled.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=ROUNDED, atol=ROUNDED)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0


def test_compiled_code_still_refuses_a_record_that_is_overwritten(toy: Toy) -> None:
    heed_hooks()
    distiller = build(toy, source='backbone.layer1.0.bn2')
    distiller.student.backbone.compile(backend='eager')
    with pytest.raises(ValueError, match='overwritten in place'):
        train(toy, distiller, [1.0])


def test_hooks_that_compiled_code_ignores_are_told_of(toy: Toy) -> None:
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    distiller = build(toy)
    distiller.student.backbone.compile(backend='eager')
    with pytest.raises(ValueError, match=r'recorders\.heed_hooks\(\)'):
        train(toy, distiller, [0.0, 1.0])


def test_a_wrapped_student_is_refused(toy: Toy) -> None:
    distiller = build(toy)
    distiller.student = torch.compile(distiller.student, backend='eager')
    with pytest.raises(ValueError, match='compile it in place'):
        train(toy, distiller, [1.0])


CONFIGURE = """
import runpy
import torch._dynamo
tool = runpy.run_path('tools/train.py')
tool['configure'](tool['parse_args']())
print('ignored' if torch._dynamo.config.skip_nnmodule_hook_guards else 'heeded')
"""


def test_the_tool_heeds_hooks_where_a_config_compiles() -> None:
    command = [sys.executable, '-c', CONFIGURE, 'configs/digits/det_student.py']
    command += ['--cfg-options', 'compile=True']
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.split()[-1:] == ['heeded'], answer.stderr[-2000:]
