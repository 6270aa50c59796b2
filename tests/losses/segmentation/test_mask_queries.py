import pytest
import torch
from torch import Tensor

from kdtoolbox.losses import MaskQueryLoss
from kdtoolbox.losses.segmentation.mask_queries import mask_query_terms
from kdtoolbox.losses.segmentation.query_matching import match_queries, query_affinity
from kdtoolbox.testing import check_loss

TERMS = ('cls', 'mask', 'dice')


def queries(students: int = 5, teachers: int = 4) -> tuple[Tensor, ...]:
    """Return 4 x 3 masks of student and teacher, then logits of 3 classes + none."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, *size) for size in ((4, 3), (4,)) for n in (students, teachers)]
    return tuple(2 * torch.randn(s, generator=generator).double() for s in shapes)


class ClassesOnly(MaskQueryLoss):
    """The loss of class logits, with the same masks on both sides."""

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        masks = queries()[1][: len(student)].to(student)
        return super().forward(masks, masks, student, teacher)


class MasksOnly(MaskQueryLoss):
    """The loss of mask logits, with the same classes on both sides."""

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        logits = queries()[3][: len(student)].to(student)
        return super().forward(student, teacher, logits, logits)


def reference(m: Tensor, n: Tensor, s: Tensor, t: Tensor) -> list[Tensor]:
    rows, columns = match_queries(query_affinity(m, n, s, t))
    terms = [torch.zeros((), dtype=s.dtype) for _ in TERMS]
    total = 0
    for image, (i, j) in enumerate(zip(rows, columns, strict=True)):
        for a, b in zip(i, j, strict=True):
            p, q = (x.exp() / x.exp().sum() for x in (s[image, a], t[image, b]))
            x, y = (1 / (1 + torch.exp(-z)) for z in (m[image, a], n[image, b]))
            weight = 1 - q[-1]
            classes = sum(d * (d / c).log() for c, d in zip(p, q, strict=True))
            cells = [
                d * (d / c).log() + (1 - d) * ((1 - d) / (1 - c)).log()
                for c, d in zip(x.flatten(), y.flatten(), strict=True)
            ]
            dice = 1 - (2 * (x * y).sum() + 1) / ((x * x).sum() + (y * y).sum() + 1)
            for index, value in enumerate((classes, sum(cells) / len(cells), dice)):
                terms[index] = terms[index] + weight * value
            total = total + weight
    return [term / total for term in terms]


@pytest.mark.parametrize('counts', [(5, 4), (4, 4), (2, 4)])
def test_matches_naive_loops(counts: tuple[int, int]) -> None:
    m, n, s, t = queries(*counts)
    s.requires_grad_(), m.requires_grad_()
    found = mask_query_terms(m, n, s, t, 2.0, 5.0)
    assert tuple(found) == TERMS
    expected = reference(m, n, s, t)
    for term, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(term, other, rtol=1e-10, atol=0)
    gradients = (
        torch.autograd.grad(sum(terms), (s, m)) for terms in (found.values(), expected)
    )
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(('kind', 'first'), [(ClassesOnly, 2), (MasksOnly, 0)])
def test_keeps_the_loss_contract(kind: type[MaskQueryLoss], first: int) -> None:
    check_loss(kind(loss_weight=2.0), *queries(students=4)[first : first + 2])


def test_order_of_queries_does_not_change_the_loss() -> None:
    m, n, s, t = queries(students=4)
    order, other = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 2, 0])
    expected = mask_query_terms(m, n, s, t)
    moved = mask_query_terms(m[:, order], n[:, other], s[:, order], t[:, other])
    assert all(expected[name] > 0.01 for name in TERMS)
    torch.testing.assert_close(moved, expected)


def test_equal_queries_in_another_order_give_zero() -> None:
    m, _, s, _ = queries()
    s, m = s.requires_grad_(), m.requires_grad_()
    order = torch.tensor([2, 0, 4, 3, 1])
    terms = mask_query_terms(m, m[:, order], s, s[:, order])
    assert sum(terms.values()) == 0
    gradients = torch.autograd.grad(sum(terms.values()), (s, m))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-12


def test_empty_teacher_query_does_not_count() -> None:
    m, n, s, t = queries(students=4)
    t[:, 1, -1] = 800.0
    expected = mask_query_terms(m, n, s, t)
    n[:, 1] = 5.0
    torch.testing.assert_close(mask_query_terms(m, n, s, t), expected)


def test_teacher_without_objects_gives_zero() -> None:
    m, n, s, t = (x.float() for x in queries())
    t[..., -1] = 800.0
    s.requires_grad_(), m.requires_grad_()
    total = sum(mask_query_terms(m, n, s, t).values())
    total.backward()
    assert total == 0
    assert not s.grad.any()
    assert not m.grad.any()


@pytest.mark.parametrize('scale', [0.0, 1e3])
def test_saturated_and_flat_logits_give_finite_values(scale: float) -> None:
    m, n, s, t = (scale * x.float() for x in queries())
    s.requires_grad_(), m.requires_grad_()
    total = sum(mask_query_terms(m, n, s, t).values())
    total.backward()
    assert total.isfinite()
    assert s.grad.isfinite().all()
    assert m.grad.isfinite().all()


def test_teacher_gets_no_gradient() -> None:
    m, n, s, t = (x.requires_grad_() for x in queries())
    sum(mask_query_terms(m, n, s, t).values()).backward()
    assert s.grad.any()
    assert m.grad.any()
    assert t.grad is n.grad is None


def test_weights_multiply_terms_and_matching() -> None:
    arguments = queries()
    loss = MaskQueryLoss(1.0, 3.0, 0.5, loss_weight=2.0)
    expected = mask_query_terms(*arguments, 1.0, 0.5)
    found = loss(*arguments)
    for name, factor in zip(TERMS, (2, 6, 1), strict=True):
        torch.testing.assert_close(found[name], factor * expected[name])


def test_inputs_that_do_not_fit_raise() -> None:
    m, n, s, t = queries()
    with pytest.raises(ValueError, match=r'student: .* \(2, 5, 4, 3\) and \(2, 4, 4\)'):
        mask_query_terms(m, n, t, t)
    with pytest.raises(ValueError, match=r'teacher: .* `teacher_cls`'):
        mask_query_terms(m, n[:, :, 0], s, t)
    with pytest.raises(ValueError, match=r'\(2, 4, 3\) differ in batch or classes'):
        mask_query_terms(m, n, s, t[..., 1:])
    with pytest.raises(ValueError, match=r'differ in size; set `pool`'):
        mask_query_terms(m, n[..., 1:], s, t)
