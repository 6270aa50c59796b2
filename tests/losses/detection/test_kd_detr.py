import pytest
import torch
from torch import Tensor

from kdtoolbox.losses.detection.kd_detr import (
    QueryBoxLoss,
    QueryClassLoss,
    query_box_terms,
    query_class_loss,
    query_weights,
)
from kdtoolbox.testing import check_loss


def queries(count: int = 12, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes of student and teacher, some overlap, and the teacher's logits."""
    generator = torch.Generator().manual_seed(0)

    def boxes() -> Tensor:
        center, size = torch.rand(2, count, 2, generator=generator).double()
        return torch.cat([center, 0.1 + 0.5 * size], 1)

    logits = 3 * torch.randn(count, classes, generator=generator).double()
    return boxes(), boxes(), logits


class BoxLoss(QueryBoxLoss):
    """The box loss with fixed logits, cut to the number of boxes."""

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        logits = queries()[2][: len(student)].to(teacher.dtype)
        return super().forward(student, teacher, logits)


def naive_boxes(
    student: Tensor, teacher: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    distance = giou = total = torch.zeros((), dtype=student.dtype)
    for s, t, z in zip(student, teacher, logits, strict=True):
        weight = max(1 / (1 + torch.exp(-k)) for k in z)
        corners = []
        for cx, cy, w, h in (s, t):
            corners.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        (ax, ay, bx, by), (cx, cy, dx, dy) = corners
        width, height = min(bx, dx) - max(ax, cx), min(by, dy) - max(ay, cy)
        overlap = width * height if width > 0 and height > 0 else 0 * width
        union = s[2] * s[3] + t[2] * t[3] - overlap
        hull = (max(bx, dx) - min(ax, cx)) * (max(by, dy) - min(ay, cy))
        giou = giou + weight * (1 - overlap / union + (hull - union) / hull)
        distance = distance + weight * sum(
            abs(a - b) for a, b in zip(s, t, strict=True)
        )
        total = total + weight
    return distance / total, giou / total


def test_boxes_match_plain_loops() -> None:
    student, teacher, logits = queries()
    student.requires_grad_()
    found = query_box_terms(student, teacher, logits)
    expected = naive_boxes(student, teacher, logits)
    # Some boxes overlap, others do not.
    assert 0.5 < found['giou'] < 1.5
    for term, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(term, other, rtol=1e-9, atol=0)
        ours, theirs = (
            torch.autograd.grad(value, student, retain_graph=True)[0]
            for value in (term, other)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_box_loss_keeps_the_contract() -> None:
    student, teacher, _ = queries()
    check_loss(BoxLoss(), student, teacher)


def test_each_weight_multiplies_its_term() -> None:
    arguments = queries()
    terms = query_box_terms(*arguments)
    loss = QueryBoxLoss(l1_weight=3.0, giou_weight=0.5, loss_weight=2.0)
    found = loss(*arguments)
    torch.testing.assert_close(found['l1'], 6 * terms['l1'])
    torch.testing.assert_close(found['giou'], terms['giou'])


def test_boxes_of_background_queries_do_not_count() -> None:
    student, teacher, logits = queries()
    logits[4] = -60.0
    found = query_box_terms(student, teacher, logits)
    student[4] = teacher[4]
    expected = query_box_terms(student, teacher, logits)
    torch.testing.assert_close(found, expected)
    logits[4] = 0.0
    assert query_box_terms(student, teacher, logits)['l1'] < expected['l1']


def test_box_loss_gives_the_teacher_no_gradient() -> None:
    tensors = [x.requires_grad_() for x in queries()]
    sum(query_box_terms(*tensors).values()).backward()
    assert tensors[0].grad.any()
    assert tensors[1].grad is tensors[2].grad is None


@pytest.mark.parametrize('size', [0.0, 1e-5])
def test_boxes_without_extent_stay_finite(size: float) -> None:
    student, teacher, logits = (x.float() for x in queries())
    student[:, 2:] = teacher[:, 2:] = size
    student.requires_grad_()
    terms = query_box_terms(student, teacher, logits)
    sum(terms.values()).backward()
    assert torch.stack([*terms.values()]).isfinite().all()
    assert student.grad.isfinite().all()


def test_box_loss_is_zero_without_queries() -> None:
    student, teacher, logits = (x[:0] for x in queries())
    student.requires_grad_()
    terms = query_box_terms(student, teacher, logits)
    sum(terms.values()).backward()
    assert terms['l1'] == terms['giou'] == 0


def test_box_loss_refuses_other_shapes() -> None:
    student, teacher, logits = queries()
    with pytest.raises(ValueError, match=r'same queries, .* \(12, 4\) .* \(6, 4\)'):
        query_box_terms(student, teacher[:6], logits)
    with pytest.raises(ValueError, match=r'student \(12, 3\) .*ObjectQueries'):
        query_box_terms(student[:, :3], teacher[:, :3], logits)
    with pytest.raises(ValueError, match=r'logits \(12, K\) .* got \(6, 3\)'):
        query_box_terms(student, teacher, logits[:6])


def logits(count: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, count, classes, generator=generator).double()
    return student, 3 * teacher


def naive_classes(student: Tensor, teacher: Tensor) -> Tensor:
    value = total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        p, q = 1 / (1 + torch.exp(-t)), 1 / (1 + torch.exp(-s))
        weight = max(p)
        for a, b in zip(p, q, strict=True):
            value = value + weight * a * torch.log(a / b)
            value = value + weight * (1 - a) * torch.log((1 - a) / (1 - b))
        total = total + weight
    return value / total


def test_classes_match_plain_loops() -> None:
    student, teacher = logits()
    student.requires_grad_()
    found, expected = (f(student, teacher) for f in (query_class_loss, naive_classes))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_class_loss_keeps_the_contract() -> None:
    check_loss(QueryClassLoss(loss_weight=2.0), *logits())


def test_weights_follow_the_most_likely_class() -> None:
    teacher = torch.tensor([[0.0, -3.0], [-3.0, 0.0], [-200.0, -200.0]])
    torch.testing.assert_close(query_weights(teacher), torch.tensor([0.5, 0.5, 0.0]))


def test_classes_of_background_queries_do_not_count() -> None:
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


def test_class_loss_is_zero_without_queries() -> None:
    student, teacher = (x[:0] for x in logits())
    student.requires_grad_()
    loss = query_class_loss(student, teacher)
    loss.backward()
    assert loss == 0


def test_class_loss_gives_the_teacher_no_gradient() -> None:
    student, teacher = (x.requires_grad_() for x in logits())
    query_class_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_class_loss_refuses_other_shapes() -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match=r'\(8, 3\) and teacher \(8, 2\) differ'):
        query_class_loss(student, teacher[:, :2])
    with pytest.raises(ValueError, match=r'expected logits as rows \(R, K\)'):
        query_class_loss(student[None], teacher[None])
