from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.segmentation.skd import (
    SKDPairwiseLoss,
    patch_similarity,
    skd_pairwise,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
AUTHORS = dict(scale=0.5, legacy_detached_norm=True)
GOLDEN = dict(official_scale0p5=AUTHORS, cirkd_2x2=dict(cells=2))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', GOLDEN)
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('skd', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    config = dict(type='kdtoolbox.SKDPairwiseLoss', loss_weight=1.0, **GOLDEN[case])
    value = MODELS.build(config)(student, golden.inputs['teacher'])
    assert_golden(value, [student], golden)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [(dict(cells=2), 0.3902948), (dict(scale=0.5), 0.0950795), (AUTHORS, 0.0950795)],
)
def test_value_for_closed_form_inputs(arguments: dict, expected: float) -> None:
    loss = SKDPairwiseLoss(**arguments, loss_weight=1.0)
    value = loss(STUDENT.double(), TEACHER.double())
    assert float(value) == pytest.approx(expected, rel=1e-6)


def naive_patches(image: Tensor, patch: tuple[int, int], legacy: bool) -> list[Tensor]:
    nodes = []
    for y in range(0, image.shape[1], patch[0]):
        for x in range(0, image.shape[2], patch[1]):
            cells = image[:, y : y + patch[0], x : x + patch[1]].flatten(1)
            node = torch.stack([max(channel) for channel in cells])
            norm = (node**2).sum() ** 0.5
            nodes.append(node / (norm.detach() + 1e-8) if legacy else node / norm)
    return nodes


def naive(student: Tensor, teacher: Tensor, *how: Any) -> Tensor:
    errors = []
    for images in zip(student, teacher, strict=True):
        s, t = (naive_patches(image, *how) for image in images)
        for i in range(len(s)):
            for j in range(len(s)):
                a, b = (s[i] * s[j]).sum(), (t[i] * t[j]).sum()
                errors.append((a - b) ** 2)
    return sum(errors) / len(errors)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('patch', [(2, 2), (3, 2), (6, 5)])
def test_matches_naive_loops(patch: tuple[int, int], legacy: bool) -> None:
    found = []
    teacher = torch.cat([TEACHER, 1 - TEACHER[:, :1]], 1).double()
    for compute in (skd_pairwise, naive):
        student = STUDENT.double().requires_grad_()
        value = compute(student, teacher, patch, legacy)
        value.backward()
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_scale_of_the_features_does_not_change_the_loss_and_gets_no_gradient() -> None:
    student = STUDENT.double().requires_grad_()
    value = SKDPairwiseLoss(cells=2)(7 * student, TEACHER.double())
    torch.testing.assert_close(value, SKDPairwiseLoss(cells=2)(student, TEACHER))
    value.backward()
    # The direction of the features themselves changes only their norms.
    assert (student.grad * student).sum().abs() < 1e-12
    legacy = SKDPairwiseLoss(cells=2, legacy_detached_norm=True)
    student.grad = None
    legacy(student, TEACHER.double()).backward()
    assert (student.grad * student).sum().abs() > 1e-3


def test_zero_features_give_zero() -> None:
    student = torch.zeros(2, 4, 6, 5, requires_grad=True)
    value = SKDPairwiseLoss()(student, torch.zeros(2, 4, 6, 5))
    value.backward()
    assert value == 0
    assert student.grad.isfinite().all()


def test_number_of_patches() -> None:
    for size, count in (((64, 128), 4), ((65, 65), 9), ((1, 1), 1)):
        maps = torch.zeros(1, 1, *size)
        patch = SKDPairwiseLoss().patch_of(maps)
        assert patch_similarity(maps, patch).shape == (1, count, count)


@pytest.mark.parametrize('arguments', [{}, dict(cells=2)])
def test_keeps_the_loss_contract(arguments: dict) -> None:
    check_loss(SKDPairwiseLoss(**arguments), STUDENT, TEACHER)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 4\) differ in size.*Resize'):
        SKDPairwiseLoss()(STUDENT, TEACHER[..., :4])
