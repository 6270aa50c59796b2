import pytest
import torch
from torch import Tensor

from kdtoolbox.losses import QueryBoxLoss
from kdtoolbox.losses.detection.kd_detr import query_box_terms
from kdtoolbox.testing import check_loss


def queries(count: int = 12, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes of two sides, some of which overlap, and the teacher's logits."""
    generator = torch.Generator().manual_seed(0)

    def boxes() -> Tensor:
        center, size = torch.rand(2, count, 2, generator=generator).double()
        return torch.cat([center, 0.1 + 0.5 * size], 1)

    logits = 3 * torch.randn(count, classes, generator=generator).double()
    return boxes(), boxes(), logits


class Loss(QueryBoxLoss):
    """The loss with the logits of as many queries as there are boxes."""

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        return super().forward(student, teacher, queries()[2][: len(student)])


def reference(
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


def test_against_loops() -> None:
    student, teacher, logits = queries()
    student.requires_grad_()
    found = query_box_terms(student, teacher, logits)
    expected = reference(student, teacher, logits)
    # Some boxes overlap, others do not.
    assert 0.5 < found[1] < 1.5
    for term, other in zip(found, expected, strict=True):
        torch.testing.assert_close(term, other, rtol=1e-9, atol=0)
        ours, theirs = (
            torch.autograd.grad(value, student, retain_graph=True)[0]
            for value in (term, other)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_contract() -> None:
    student, teacher, _ = queries()
    check_loss(Loss(), student, teacher)


def test_weights_of_the_terms() -> None:
    arguments = queries()
    distance, giou = query_box_terms(*arguments)
    loss = QueryBoxLoss(l1_weight=3.0, giou_weight=0.5, loss_weight=2.0)
    found = loss(*arguments)
    torch.testing.assert_close(found['l1'], 6 * distance)
    torch.testing.assert_close(found['giou'], giou)


def test_a_query_on_background_does_not_count() -> None:
    student, teacher, logits = queries()
    logits[4] = -60.0
    found = query_box_terms(student, teacher, logits)
    student[4] = teacher[4]
    expected = query_box_terms(student, teacher, logits)
    torch.testing.assert_close(found, expected)
    logits[4] = 0.0
    assert query_box_terms(student, teacher, logits)[0] < expected[0]


def test_no_gradient_into_the_teacher() -> None:
    tensors = [x.requires_grad_() for x in queries()]
    sum(query_box_terms(*tensors)).backward()
    assert tensors[0].grad.any()
    assert tensors[1].grad is tensors[2].grad is None


@pytest.mark.parametrize('size', [0.0, 1e-5])
def test_boxes_without_extent_stay_finite(size: float) -> None:
    student, teacher, logits = (x.float() for x in queries())
    student[:, 2:] = teacher[:, 2:] = size
    student.requires_grad_()
    terms = query_box_terms(student, teacher, logits)
    sum(terms).backward()
    assert torch.stack(terms).isfinite().all()
    assert student.grad.isfinite().all()


def test_without_queries_the_terms_are_zero() -> None:
    student, teacher, logits = (x[:0] for x in queries())
    student.requires_grad_()
    terms = query_box_terms(student, teacher, logits)
    sum(terms).backward()
    assert terms[0] == terms[1] == 0


def test_what_does_not_fit_is_refused() -> None:
    student, teacher, logits = queries()
    with pytest.raises(ValueError, match=r'same queries, .* \(12, 4\) .* \(6, 4\)'):
        query_box_terms(student, teacher[:6], logits)
    with pytest.raises(ValueError, match=r'student \(12, 3\) .*QueryDistiller'):
        query_box_terms(student[:, :3], teacher[:, :3], logits)
    with pytest.raises(ValueError, match=r'logits \(12, K\) .* got \(6, 3\)'):
        query_box_terms(student, teacher, logits[:6])
