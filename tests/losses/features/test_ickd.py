import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.connectors import ConvConnector
from kdtoolbox.losses.features.ickd import ICKDLoss, inter_channel_correlation
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('ickd', 'official', dtype)
    student = golden.inputs['student'].requires_grad_()
    connector = ConvConnector(6, 8, norm_cfg=dict(type='BN')).to(dtype)
    conv, norm = connector.convs[0].conv, connector.convs[0].norm
    with torch.no_grad():
        conv.weight.copy_(golden.params['embed_s.conv2d.weight'])
        norm.weight.copy_(golden.params['embed_s.l2norm.weight'])
        norm.bias.copy_(golden.params['embed_s.l2norm.bias'])
    loss = MODELS.build(dict(type='kdtoolbox.ICKDLoss'))
    [embedded] = connector([student])
    assert_golden(loss(embedded, golden.inputs['teacher']), [student], golden)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_without_embedding(dtype: torch.dtype) -> None:
    golden = load_golden('ickd', 'chsim_no_embed', dtype)
    student = golden.inputs['student'].requires_grad_()
    # torchdistill divides by the batch size a second time.
    loss = ICKDLoss(loss_weight=1 / len(student))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def test_closed_form_inputs() -> None:
    value = float(inter_channel_correlation(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(0.8952709, rel=1e-6)


def naive_rows(maps: Tensor) -> list[Tensor]:
    """Compute the normalised rows of the Gram matrix of one image (C, H, W)."""
    rows = []
    for channel in maps:
        row = torch.stack([(channel * other).sum() for other in maps])
        rows.append(row / sum(value**2 for value in row) ** 0.5)
    return rows


def test_naive_loops() -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    # The teacher may have another size.
    teacher = TEACHER.double()[:, :, 1:, :3]
    expected = torch.zeros((), dtype=torch.float64)
    for student_map, teacher_map in zip(reference, teacher, strict=True):
        for s, t in zip(naive_rows(student_map), naive_rows(teacher_map), strict=True):
            expected = expected + ((s - t) ** 2).sum() / (2 * 4)
    value = inter_channel_correlation(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_scale_and_order_of_positions_do_not_change_the_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    expected = inter_channel_correlation(student, teacher)
    changed = 3 * student.flatten(2).flip(2).unflatten(2, (5, 6))
    value = inter_channel_correlation(changed, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_gradient_stays_small_with_a_channel_of_zeros() -> None:
    student = STUDENT.clone()
    student[:, 1] = 0
    student.requires_grad_()
    inter_channel_correlation(student, TEACHER).backward()
    assert 0 < student.grad.abs().max() < 1


def test_contract() -> None:
    check_loss(ICKDLoss(loss_weight=2.5), STUDENT, TEACHER)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*3, 6, 5\).*ConvConnector'):
        inter_channel_correlation(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        inter_channel_correlation(STUDENT[0], TEACHER[0])
