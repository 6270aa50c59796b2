from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.losses.segmentation.idd import IDDLoss, idd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
LABELS = (torch.arange(60) // 7 * 5 % 4).reshape(2, 6, 5)
LABELS[0, 1, :3], LABELS[1, :, 4] = IGNORED, 254


def naive(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    total = student.new_zeros(())
    for n, label in enumerate(labels):
        classes = sorted(set(label.flatten().tolist()) - {IGNORED})
        errors = []
        for i, j in combinations(classes, 2):
            s, t = (
                sum(
                    (x[n][:, label == i].mean(1)[c] - x[n][:, label == j].mean(1)[c])
                    ** 2
                    for c in range(x.shape[1])
                )
                ** 0.5
                for x in (student, teacher)
            )
            errors.append((s - t) ** 2 / 2)
        total = total + sum(errors) / max(len(errors), 1)
    return total / len(labels)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    # The teacher may have a different number of channels.
    teacher = TEACHER[:, :3]
    expected = naive(reference, teacher.double(), LABELS)
    expected.backward()
    value = idd_loss(student, teacher.to(dtype), LABELS)
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_distances_of_close_classes_are_accurate() -> None:
    offset = 1000 + 0.01 * STUDENT
    teacher = torch.zeros_like(STUDENT)
    expected = idd_loss((offset - 1000).double(), teacher.double(), LABELS)
    value = idd_loss(offset, teacher, LABELS).double()
    # The mean of a class sums up to 14 pixels, each rounded by half an eps of 1000. The
    # distances are at least 0.01. With squared norms the loss is wrong by a factor of
    # 500.
    rtol = 2 * 14 * 1000 * torch.finfo(torch.float32).eps / 0.01
    torch.testing.assert_close(value, expected, rtol=rtol, atol=0)


def test_shift_of_all_features_does_not_change_the_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    expected = idd_loss(student, teacher, LABELS)
    shifted = student + torch.tensor([1.0, -2.0, 5.0, 0.5]).reshape(4, 1, 1)
    torch.testing.assert_close(idd_loss(shifted, teacher, LABELS), expected)


def test_ignored_pixels_get_no_gradient() -> None:
    student = STUDENT.double().requires_grad_()
    idd_loss(student, TEACHER.double(), LABELS).backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, LABELS != IGNORED)


@pytest.mark.parametrize('label', [IGNORED, 3])
def test_images_with_fewer_than_two_classes_give_zero(label: int) -> None:
    student = STUDENT.clone().requires_grad_()
    value = idd_loss(student, TEACHER, torch.full_like(LABELS, label))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_keeps_the_loss_contract() -> None:
    loss = MODELS.build(dict(type='kdtoolbox.IDDLoss'))
    maps = STUDENT[:, :3, 1:4, 3:], TEACHER[:, :3, 1:4, 3:]
    check_loss(loss, *maps, data_samples=samples_of(LABELS[:, 1:4, 3:] % 256))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r"no `gt_sem_seg`.*type='LoadAnnotations'"):
        IDDLoss()(STUDENT, TEACHER, [SimpleNamespace()])
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 4\) differ in size'):
        idd_loss(STUDENT, TEACHER[..., :4], LABELS)
