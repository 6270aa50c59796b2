"""Losses on float16 maps whose gradients are larger than float16 can hold.

The loss scaler of mixed precision handles such gradients: it skips the update and tries
a smaller scale. A loss has to compute in float32.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtoolbox.losses.detection.fgd import FGDLoss
from kdtoolbox.losses.detection.kd_detr import QueryBoxLoss
from kdtoolbox.losses.features.at import ATLoss
from kdtoolbox.losses.features.fsp import FSPLoss
from kdtoolbox.losses.features.ft import FTLoss
from kdtoolbox.losses.relations.pkt import PKTLoss
from kdtoolbox.losses.relations.sp import SPLoss

CHANNELS, SIZE = 8, (160, 160)
LARGEST = torch.finfo(torch.float16).max
BOX = SimpleNamespace(
    bboxes=torch.tensor([[100.0, 100.0, 400.0, 400.0]]), labels=torch.zeros(1).long()
)
SAMPLES = [SimpleNamespace(gt_instances=BOX, metainfo=dict(img_shape=(640, 640)))] * 2
FGD = dict(level=0, data_samples=SAMPLES, batch_input_shape=(640, 640))
LOGITS = torch.linspace(-3, 3, 100 * 5).reshape(100, 5)
LOSSES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = dict(
    AT=(ATLoss, {}),
    FGD=(lambda: FGDLoss(CHANNELS, 1), FGD),
    FSP=(FSPLoss, dict(ends=True)),
    FT=(lambda: FTLoss(CHANNELS, CHANNELS), {}),
    PKT=(PKTLoss, {}),
    SP=(SPLoss, {}),
    QueryBox=(QueryBoxLoss, dict(teacher_cls=LOGITS)),
)
# Factors on the student's values: powers of ten, from below the range of float16.
SCALES = [10.0**power for power in range(-8, 5)]


def inputs(name: str, scale: float) -> tuple[Tensor, Tensor]:
    """Return float16 maps of the student, partly 0, and of the teacher."""
    generator = torch.Generator().manual_seed(0)
    shape = (100, 4) if name == 'QueryBox' else (2, CHANNELS, *SIZE)
    student, teacher = torch.randn(2, *shape, generator=generator)
    student[:1] *= 0 if scale < 1e-3 else 1
    return (student * scale).clamp(-LARGEST, LARGEST).half(), teacher.half()


def gradient_of(name: str, student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    torch.manual_seed(0)
    make, context = LOSSES[name]
    context = dict(context)
    student = student.clone().requires_grad_()
    if context.pop('ends', False):
        context = dict(student_end=student.detach().flip(1), teacher_end=teacher)
    value = make()(student, teacher, **context)
    total = (
        torch.stack(list(value.values())).sum() if isinstance(value, dict) else value
    )
    (weight * total).backward()
    assert student.grad is not None
    return student.grad


@pytest.mark.e2e
@pytest.mark.parametrize('name', LOSSES)
def test_a_float16_gradient_is_that_of_float32_and_infinite_only_beyond_its_range(
    name: str,
) -> None:
    beyond = 0
    for scale in SCALES:
        student, teacher = inputs(name, scale)
        wide = gradient_of(name, student.float(), teacher, 1.0)
        assert wide.isfinite().all()
        # The weight with which the largest gradient leaves the range of float16.
        largest = float(wide.abs().max())
        weight = 2.0 ** int(torch.tensor(LARGEST / max(largest, 1e-30)).log2().ceil())
        for factor in (1.0, weight):
            goal = gradient_of(name, student.float(), teacher, factor).half()
            assert torch.equal(gradient_of(name, student, teacher, factor), goal)
            beyond += int(goal.isinf().sum())
    assert beyond
