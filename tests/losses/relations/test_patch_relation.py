from typing import Any

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.relations.patch_relation import patch_divergence
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 3, 6, 5), 0.23, 0.17, 0.4)


def build(**changes: Any) -> torch.nn.Module:
    return MODELS.build(dict(type='kdtoolbox.PatchRelationLoss', **changes))


def naive(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Loop over images and positions."""
    terms = []
    for image in range(len(student)):
        s, t = (maps[image].flatten(1).T for maps in (student, teacher))
        for p in range(len(s)):
            q, r = (
                torch.stack([torch.cosine_similarity(x[p], y, dim=0) for y in x]) / tau
                for x in (s, t)
            )
            q, r = q.softmax(0), r.softmax(0)
            terms.append((r * (r / q).log()).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize('tau', [0.07, 1.0])
def test_matches_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    expected = naive(reference, teacher, tau)
    value = build(tau=tau)(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_large_maps_are_averaged_over_the_cells_of_the_grid() -> None:
    student, teacher = STUDENT.double(), waves((2, 3, 4, 8), 0.3, 0.2).double()
    pooled = torch.stack(
        [
            torch.stack([teacher[:, :, y : y + 2, x : x + 4].mean((2, 3))], -1)
            for y in (0, 2)
            for x in (0, 4)
        ],
        -1,
    ).reshape(2, 3, 2, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(student, 2)
    value = patch_divergence(student, teacher, grid=2)
    torch.testing.assert_close(value, naive(small, pooled, 0.07))
    # A map is never enlarged: the grid is that of the smaller one.
    assert patch_divergence(small, teacher, grid=16) == value


def test_rotation_and_scale_do_not_change_the_loss() -> None:
    rotation, _ = torch.linalg.qr(waves((4, 4), 0.7, 0.3).double())
    student, teacher = STUDENT.double(), TEACHER.double()
    turned = torch.einsum('dc,nchw->ndhw', 3 * rotation, student)
    value = patch_divergence(student, teacher)
    torch.testing.assert_close(patch_divergence(turned, teacher), value)
    turned = torch.einsum('dc,nchw->ndhw', rotation, student)
    assert patch_divergence(turned, student) < 1e-12


def test_images_are_compared_with_themselves_alone() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    alone = [patch_divergence(student[[n]], teacher[[n]]) for n in (0, 1)]
    torch.testing.assert_close(
        patch_divergence(student, teacher), torch.stack(alone).mean()
    )


def test_a_dead_position_gets_no_gradient() -> None:
    student = STUDENT.clone()
    student[0, :, 2, 3] = 0
    student.requires_grad_()
    build()(student, TEACHER).backward()
    assert student.grad.isfinite().all()
    assert not student.grad[0, :, 2, 3].any()
    assert student.grad[0, :, 2, 2].any()


def test_keeps_the_loss_contract() -> None:
    check_loss(build(tau=0.5), STUDENT[:, :, :3, :3], TEACHER[:, :, 1:, 1:])


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='different numbers of images'):
        build()(STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        build()(STUDENT[0], TEACHER[0])
    with pytest.raises(ValueError, match='grid must be an integer of at least 1'):
        build(grid=0)
    with pytest.raises(ValueError, match='tau must be a finite number above 0'):
        build(tau=0.0)
