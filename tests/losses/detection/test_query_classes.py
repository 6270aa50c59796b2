import pytest
import torch
from torch import Tensor

from kdtoolbox.losses import QueryClassLoss
from kdtoolbox.losses.detection.kd_detr import query_class_loss, query_weights
from kdtoolbox.testing import check_loss


def logits(count: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, count, classes, generator=generator).double()
    return student, 3 * teacher


def reference(student: Tensor, teacher: Tensor) -> Tensor:
    value = total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        p, q = 1 / (1 + torch.exp(-t)), 1 / (1 + torch.exp(-s))
        weight = max(p)
        for a, b in zip(p, q, strict=True):
            value = value + weight * a * torch.log(a / b)
            value = value + weight * (1 - a) * torch.log((1 - a) / (1 - b))
        total = total + weight
    return value / total


def test_against_loops() -> None:
    student, teacher = logits()
    student.requires_grad_()
    found, expected = (f(student, teacher) for f in (query_class_loss, reference))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_contract() -> None:
    check_loss(QueryClassLoss(loss_weight=2.0), *logits())


def test_weights_follow_the_most_likely_class() -> None:
    teacher = torch.tensor([[0.0, -3.0], [-3.0, 0.0], [-200.0, -200.0]])
    torch.testing.assert_close(query_weights(teacher), torch.tensor([0.5, 0.5, 0.0]))


def test_a_query_on_background_does_not_count() -> None:
    student, teacher = logits()
    teacher[2] = -800.0
    expected = query_class_loss(student, teacher)
    student[2] = 5.0
    torch.testing.assert_close(query_class_loss(student, teacher), expected)


@pytest.mark.parametrize('teacher', [-200.0, 200.0])
def test_saturated_logits_stay_finite(teacher: float) -> None:
    student = torch.tensor([[-200.0], [0.0], [200.0]], requires_grad=True)
    loss = query_class_loss(student, torch.full((3, 1), teacher))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_without_queries_the_loss_is_zero() -> None:
    student, teacher = (x[:0] for x in logits())
    student.requires_grad_()
    loss = query_class_loss(student, teacher)
    loss.backward()
    assert loss == 0


def test_no_gradient_into_the_teacher() -> None:
    student, teacher = (x.requires_grad_() for x in logits())
    query_class_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match=r'\(8, 3\) and teacher \(8, 2\) differ'):
        query_class_loss(student, teacher[:, :2])
    with pytest.raises(ValueError, match=r'expected logits as rows \(R, K\)'):
        query_class_loss(student[None], teacher[None])
