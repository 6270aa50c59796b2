import math
from collections import Counter

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.logits.kd import kd_loss
from kdtoolbox.losses.logits.sdd import SDDLoss, sdd_loss
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 3, 5, 4), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 3, 5, 4), 0.23, 0.17, 0.4)
LABELS = (torch.arange(40) // 7 % 3).reshape(2, 5, 4)
HOLES = LABELS.clone()
# A 2 x 2 grid cuts 5 rows into 0-2 and 2-4: the first window is ignored entirely.
HOLES[0, :3, :2], HOLES[1, 4, 3] = 255, 255


def cut(size: int, grid: int) -> list[range]:
    """Return the rows or columns of each window; neighbours may share one."""
    return [range(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def naive(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> Tensor:
    values = []
    for s, t, image in zip(student, teacher, labels, strict=True):
        whole = None
        for grid in (1, 2, 3):
            windows = [(r, c) for r in cut(5, grid) for c in cut(4, grid)]
            for rows, columns in windows:
                pixels = [(y, x) for y in rows for x in columns if image[y, x] != 255]
                if not pixels:
                    continue
                student_mean, teacher_mean = (
                    torch.stack([m[:, y, x] for y, x in pixels]).mean(0) for m in (s, t)
                )
                counts = Counter(int(image[y, x]) for y, x in pixels)
                label = min(counts, key=lambda k: (-counts[k], k))
                right = int(teacher_mean.argmax()) == label
                whole = right if whole is None else whole
                p, q = ((x / tau).softmax(0) for x in (student_mean, teacher_mean))
                weight = 1 if right == whole else 2
                values.append(weight * tau**2 * (q * (q / p).log()).sum())
    return torch.stack(values).sum() / len(values)


@pytest.mark.parametrize('labels', [LABELS, HOLES], ids=['all', 'holes'])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_matches_naive_loops(labels: Tensor, tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = sdd_loss(student, teacher, samples_of(labels), (1, 2, 3), tau)
    expected = naive(reference, teacher, labels, tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_windows_where_local_and_global_disagree_count_twice() -> None:
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    teacher[0, 0], teacher[0, 0, 0, 0] = 1.0, -5.0
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    # The teacher is right about three of four windows and wrong about the whole map.
    rows = teacher[0].flatten(1).T
    plain = [kd_loss(torch.zeros(1, 2), row[None]) for row in (*rows, rows.mean(0))]
    value = sdd_loss(student, teacher, samples_of(labels), (1, 2), 1.0)
    weights = torch.tensor([1.0, 2, 2, 2, 1])
    torch.testing.assert_close(value, (weights * torch.stack(plain)).mean())


def test_ignored_pixels_do_not_count() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    expected = sdd_loss(student, teacher, samples_of(HOLES))
    teacher.movedim(1, -1)[HOLES == 255] = math.inf
    value = sdd_loss(student, teacher, samples_of(HOLES))
    assert value == expected
    value.backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, HOLES != 255)


def test_batch_of_ignored_pixels_gives_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    value = sdd_loss(student, TEACHER, samples_of(torch.full_like(LABELS, 255)))
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('labels', [LABELS, HOLES], ids=['all', 'holes'])
def test_keeps_the_loss_contract(labels: Tensor) -> None:
    loss = SDDLoss(grids=[1, 2], loss_weight=3.0)
    check_loss(loss, STUDENT, TEACHER, data_samples=samples_of(labels))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'expected logits as maps .* \(2, 3\)'):
        sdd_loss(STUDENT[..., 0, 0], TEACHER[..., 0, 0], samples_of(LABELS))
    with pytest.raises(ValueError, match='differ in shape.*ResizeConnector'):
        sdd_loss(STUDENT, TEACHER[..., :3], samples_of(LABELS))
    with pytest.raises(ValueError, match='SDDLoss reads true .* `gt_sem_seg`'):
        sdd_loss(STUDENT, TEACHER, [])
    with pytest.raises(ValueError, match='SDDLoss: tau must be .* got 0'):
        SDDLoss(tau=0)
    for grids in ((2, 4), (), (1, 0), (1, 2.5)):
        with pytest.raises(ValueError, match=r'SDDLoss: grids must be .*grids=\(1, 2'):
            SDDLoss(grids=grids)
