import re

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.connectors import CBAMConnector, FixedCBAMConnector
from kdtoolbox.losses.features.attnfd import AttnFDLoss, attnfd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('attnfd', 'two_levels', dtype)
    students, teachers = golden.inputs['student'], golden.inputs['teacher']
    widths = [[x.shape[1] for x in levels] for levels in (students, teachers)]
    connector = CBAMConnector(*widths, reduction=4).to(dtype)
    weights = {k.removeprefix('connector.'): v for k, v in golden.params.items()}
    missing = connector.projections.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    students = [x.requires_grad_() for x in students]
    # These vectors were computed without attention.
    projected = [p(x) for p, x in zip(connector.projections, students, strict=True)]
    arguments = dict(legacy_batch_norm=True, loss_weight=golden.hyper['attn_lambda'])
    loss = MODELS.build(dict(type='kdtoolbox.AttnFDLoss', **arguments))
    levels = list(map(loss, projected, teachers))
    assert_golden(torch.stack(levels).sum(), students, golden)


RENAMED = {
    r'connector\.(\d)': r'projections.\1',
    r'cbam\.(\d)\.ChannelGate\.mlp\.1': r'channel_gates.\1.0',
    r'cbam\.(\d)\.ChannelGate\.mlp\.3': r'channel_gates.\1.2',
    r'cbam\.(\d)\.SpatialGate\.spatial\.conv': r'spatial_gates.\1.0',
    r'cbam\.(\d)\.SpatialGate\.spatial\.bn': r'spatial_gates.\1.1',
}
"""Names of the authors' parameters -> names here."""


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_with_attention(dtype: torch.dtype) -> None:
    golden = load_golden('attnfd', 'with_cbam', dtype)
    hyper, students = golden.hyper, golden.inputs['student']
    widths = hyper['student_channels'], hyper['teacher_channels']
    connector = CBAMConnector(*widths, reduction=hyper['reduction_ratio']).to(dtype)
    weights = {renamed(name): value for name, value in golden.params.items()}
    found = connector.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    # Only running statistics are missing; training does not read them.
    assert all('running' in k or 'tracked' in k for k in found.missing_keys)
    students = [x.requires_grad_() for x in students]
    loss = AttnFDLoss(legacy_batch_norm=True, loss_weight=hyper['attn_lambda'])
    levels = map(
        loss, connector(students), FixedCBAMConnector()(golden.inputs['teacher'])
    )
    assert_golden(torch.stack(list(levels)).sum(), students, golden)


def test_closed_form_inputs() -> None:
    value = attnfd_loss(STUDENT.double(), TEACHER.double(), legacy_batch_norm=True)
    assert value.item() == pytest.approx(0.9138653, rel=1e-6)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for student_map, teacher_map in zip(student, teacher, strict=True):
        s_norm = sum(value**2 for value in student_map.flatten()) ** 0.5
        t_norm = sum(value**2 for value in teacher_map.flatten()) ** 0.5
        for s, t in zip(student_map.flatten(), teacher_map.flatten(), strict=True):
            total = total + (s / s_norm - t / t_norm) ** 2
    return total / len(student)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    expected = naive(reference, TEACHER.double())
    expected.backward()
    value = attnfd_loss(student, TEACHER.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_scale_of_an_image_matters_only_with_legacy_batch_norm() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    scaled = torch.tensor([0.1, 20.0]).reshape(2, 1, 1, 1) * student
    expected = attnfd_loss(student, teacher)
    torch.testing.assert_close(attnfd_loss(scaled, teacher), expected)
    legacy = attnfd_loss(student, teacher, legacy_batch_norm=True)
    assert abs(attnfd_loss(scaled, teacher, legacy_batch_norm=True) - legacy) > 0.01


def test_legacy_loss_is_n_times_smaller_for_images_of_equal_norm() -> None:
    student, teacher = (x[:1].double().repeat(3, 1, 1, 1) for x in (STUDENT, TEACHER))
    legacy = attnfd_loss(student, teacher, legacy_batch_norm=True)
    torch.testing.assert_close(3 * legacy, attnfd_loss(student, teacher))


@pytest.mark.parametrize('legacy', [False, True])
def test_a_map_of_zeros_gets_no_gradient(legacy: bool) -> None:
    student = torch.zeros_like(STUDENT).requires_grad_()
    value = attnfd_loss(student, TEACHER, legacy)
    value.backward()
    assert value.item() == pytest.approx(0.5 if legacy else 1.0)
    assert not student.grad.any()


@pytest.mark.parametrize('legacy', [False, True])
def test_contract(legacy: bool) -> None:
    check_loss(AttnFDLoss(legacy), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*a ResizeConnector'):
        attnfd_loss(STUDENT, TEACHER[..., :4])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        attnfd_loss(STUDENT[0], TEACHER[0])
