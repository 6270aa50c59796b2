"""A step of a Distiller waits for the device once: where it checks that all is finite.

Real models train on the CPU under the modes of device_discipline.py. Only calls of
kdtoolbox itself count. Those of mmdet, mmseg and mmengine are theirs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from device_discipline import device_discipline
from mmengine.optim import OptimWrapper

sys.path.append(str(Path(__file__).parents[1] / 'distributed'))

from kinds import KINDS  # noqa: E402

Toy = SimpleNamespace
GUARD = 'kdtoolbox.checkpoints.finite_values.all_finite:'


def is_ours(frame: FrameType) -> bool:
    return frame.f_globals['__name__'].startswith('kdtoolbox.')


def waits_of(model: Any, data: dict) -> list[str]:
    """Return what the modes find in the second step."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    model.train()
    model.train_step(data, wrapper)
    with device_discipline(is_ours) as found:
        model.train_step(data, wrapper)
    return found


def gfl(toy: Toy) -> tuple[Any, dict]:
    wires = dict(student='student.fpn', teacher='teacher.fpn')
    fgd = dict(wires, type='FGDLoss', channels=8, num_levels=3)
    return toy.build_distiller(toy.gfl(), losses=dict(loss_fgd=fgd)), toy.det_data()


def segmentor(toy: Toy) -> tuple[Any, dict]:
    return toy.build_distiller(toy.segmentor()), toy.seg_data()


@pytest.mark.parametrize('make', [gfl, segmentor])
def test_a_step_waits_once_for_the_device(toy: Toy, make: Callable) -> None:
    [wait] = waits_of(*make(toy))
    assert wait.startswith(GUARD)


@pytest.mark.e2e
@pytest.mark.parametrize('kind', KINDS)
def test_no_kind_of_distiller_waits_more_often(toy: Toy, kind: str) -> None:
    model = KINDS[kind]()
    segments = hasattr(getattr(model, 'student', None), 'decode_head')
    [wait] = waits_of(model, toy.seg_data() if segments else toy.det_data())
    assert wait.startswith(GUARD)
