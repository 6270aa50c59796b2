from types import SimpleNamespace

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.features.channel_distillation import (
    ChannelDistillationLoss,
    GuidedKDLoss,
    channel_distance,
    guided_divergence,
)
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
LABELS = (torch.arange(60) % 4).reshape(2, 6, 5)
LABELS[0, 1, :3] = 255


def samples_of(labels: Tensor) -> list:
    return [
        SimpleNamespace(gt_sem_seg=SimpleNamespace(data=label[None]))
        for label in labels
    ]


def test_naive_loops_channels() -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    teacher = TEACHER.double()[..., 1:, :3]
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        for c in range(4):
            gap = reference[n, c].sum() / 30 - teacher[n, c].sum() / 15
            expected = expected + 6 * gap**2 / 8
    value = ChannelDistillationLoss()(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_naive_loops_pixels(tau: float) -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    teacher, total, count = TEACHER.double(), torch.zeros(()).double(), 0
    for n, y, x in torch.cartesian_prod(*map(torch.arange, (2, 6, 5))):
        s, t = reference[n, :, y, x], teacher[n, :, y, x]
        if max(range(4), key=lambda k: t[k]) == LABELS[n, y, x]:
            p, q = ((z / tau).exp() / (z / tau).exp().sum() for z in (t, s))
            total, count = total + tau**2 * (p * (p / q).log()).sum(), count + 1
    assert 0 < count < 57
    expected = total / count
    loss = GuidedKDLoss(tau=tau)
    value = loss(student, teacher, data_samples=samples_of(LABELS))
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_rows_with_a_wrong_teacher_get_no_gradient() -> None:
    student = STUDENT[0].flatten(1).T.clone().requires_grad_()
    teacher = TEACHER[0].flatten(1).T
    labels = teacher.argmax(1)
    labels[::3] = (labels[::3] + 1) % 4
    guided_divergence(student, teacher, labels).backward()
    reached = student.grad.abs().sum(1) > 0
    assert torch.equal(reached, labels == teacher.argmax(1))


@pytest.mark.parametrize('labels', [(TEACHER.argmax(1) + 1) % 4, LABELS * 0 + 255])
def test_loss_is_zero_if_the_teacher_is_never_correct(labels: Tensor) -> None:
    student = STUDENT.clone().requires_grad_()
    value = guided_divergence(student, TEACHER, data_samples=samples_of(labels))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_contract() -> None:
    check_loss(ChannelDistillationLoss(), STUDENT, TEACHER)
    right = TEACHER.argmax(1).where(LABELS != 255, 255)
    check_loss(GuidedKDLoss(2.0), STUDENT, TEACHER, data_samples=samples_of(right))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*3, 6, 5\).*ConvConnector'):
        channel_distance(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        channel_distance(STUDENT[0], TEACHER[0])
    with pytest.raises(ValueError, match=r"gt_sem_seg.*labels='roi\.labels'"):
        guided_divergence(STUDENT, TEACHER)
    with pytest.raises(ValueError, match='GuidedKDLoss: tau'):
        GuidedKDLoss(tau=0.0)
