import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden
from pixels import LABELS, MAPS, ROWS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.dist import DISTLoss, dist_terms
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['cls_2d', 'seg_4d'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('dist', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    arguments = dict(
        inter_weight=golden.hyper['beta'],
        intra_weight=golden.hyper['gamma'],
        tau=golden.hyper['tau'],
    )
    loss = MODELS.build(dict(type='kdtoolbox.DISTLoss', **arguments))
    terms = loss(student, golden.inputs['teacher'])
    assert terms.keys() == {'inter', 'intra'}
    for name, term in terms.items():
        expected = float(golden.outputs[name])
        assert term.item() == pytest.approx(expected, rel=TOLERANCES[dtype][0])
    assert_golden(sum(terms.values()), [student], golden)


@pytest.mark.parametrize(
    ('pair', 'tau', 'expected'),
    [(ROWS, 1.0, 2.131090), (ROWS, 4.0, 32.453606), (MAPS, 1.0, 1.862311)],
)
def test_value_for_closed_form_inputs(pair: tuple, tau: float, expected: float) -> None:
    terms = dist_terms(*(x.double() for x in pair), tau=tau)
    assert float(sum(terms.values())) == pytest.approx(expected, rel=1e-6)


def correlation(first: list, second: list) -> Tensor:
    means = sum(first) / len(first), sum(second) / len(second)
    xs, ys = [x - means[0] for x in first], [y - means[1] for y in second]
    dot = sum(x * y for x, y in zip(xs, ys, strict=True))
    norms = [sum(z * z for z in zs).sqrt() for zs in (xs, ys)]
    return dot / (norms[0] * norms[1] + 1e-8)


def naive(
    student: Tensor, teacher: Tensor, tau: float, use_sigmoid: bool
) -> dict[str, Tensor]:
    tables = []
    for rows in (student, teacher):
        exps = [(row / tau).exp() for row in rows]
        tables.append([list(e / (1 + e if use_sigmoid else e.sum())) for e in exps])
    columns = [list(zip(*table, strict=True)) for table in tables]
    inter = [correlation(*rows) for rows in zip(*tables, strict=True)]
    intra = [correlation(*classes) for classes in zip(*columns, strict=True)]
    return dict(
        inter=tau**2 * (1 - sum(inter) / len(inter)),
        intra=tau**2 * (1 - sum(intra) / len(intra)),
    )


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_matches_naive_loops_over_valid_pixels(use_sigmoid: bool) -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    reference = student.detach().clone().requires_grad_()
    terms = dist_terms(student, teacher, 2.0, samples_of(LABELS), use_sigmoid)
    expected = naive(valid_pixels(reference), valid_pixels(teacher), 2.0, use_sigmoid)
    (terms['inter'] + 3 * terms['intra']).backward()
    (expected['inter'] + 3 * expected['intra']).backward()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-9, atol=0)
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)
    assert not student.grad.movedim(1, -1)[LABELS == 255].any()


def test_weights_multiply_their_terms() -> None:
    plain = dist_terms(*ROWS)
    terms = DISTLoss(inter_weight=2.0, intra_weight=3.0, loss_weight=0.5)(*ROWS)
    assert terms['inter'] == plain['inter']
    assert terms['intra'] == 1.5 * plain['intra']


def test_scale_and_shift_of_posteriors_do_not_change_the_loss() -> None:
    """The posteriors p / 2 + 1 / 2K have the same correlations as p."""
    student, teacher = (x.double() for x in ROWS)
    flat = (student.softmax(1) / 2 + 0.1).log()
    terms, expected = dist_terms(flat, teacher), dist_terms(student, teacher)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-6, atol=0)
    for term in dist_terms(flat, student).values():
        assert float(term) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('samples', [samples_of(torch.full_like(LABELS, 255)), []])
def test_no_valid_rows_give_zero(samples: list) -> None:
    maps = [x if samples else x[:0] for x in MAPS]
    student = maps[0].clone().requires_grad_()
    value = sum(dist_terms(student, maps[1], data_samples=samples).values())
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_keeps_the_loss_contract(use_sigmoid: bool) -> None:
    loss = DISTLoss(inter_weight=2.0, tau=2.0, use_sigmoid=use_sigmoid, loss_weight=3.0)
    # eps in the divisor keeps equal maps from giving exactly 0.
    check_loss(loss, *ROWS, zero_at_equality=False)
    samples = samples_of(LABELS)
    check_loss(loss, *SMALL, zero_at_equality=False, data_samples=samples)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='at least 3 classes'):
        dist_terms(*(rows[:, :2] for rows in ROWS))
    with pytest.raises(ValueError, match='differ in shape'):
        dist_terms(MAPS[0], MAPS[1][:, :, :5])
    with pytest.raises(ValueError, match='DISTLoss: tau must be .* got -1'):
        DISTLoss(tau=-1)
