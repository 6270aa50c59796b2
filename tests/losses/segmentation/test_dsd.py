from itertools import combinations

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from pixels import samples_of
from torch import Tensor, nn

from kdtoolbox.losses.segmentation.dsd import (
    DSDCategoryLoss,
    DSDPixelLoss,
    dsd_category_loss,
    dsd_pixel_loss,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
IGNORED = torch.zeros(2, 6, 5, dtype=torch.long)
# One patch is ignored entirely, one has a single valid pixel; a border is ignored.
IGNORED[0, :2, :2], IGNORED[0, 2:4, 2:4], IGNORED[1, :, 4] = 255, 255, 255
IGNORED[0, 3, 3] = 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('dsd', 'three_levels', dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    teachers = golden.inputs['teacher']
    pixel, category = (
        MODELS.build(dict(type=f'kdtoolbox.DSD{name}Loss', loss_weight=1.0))
        for name in ('Pixel', 'Category')
    )
    terms = dict(psd=pixel(students, teachers), csd=category(students[2], teachers[2]))
    rtol, atol, _ = TOLERANCES[dtype]
    for name, term in terms.items():
        expected = golden.outputs[name]
        torch.testing.assert_close(term.detach(), expected, rtol=rtol, atol=atol)
    assert_golden(sum(terms.values()), students, golden)


def test_value_for_closed_form_inputs() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    value = dsd_pixel_loss([student, student**2], [teacher, teacher**2])
    assert float(value) == pytest.approx(0.05862348, rel=1e-6)
    value = dsd_category_loss(student, teacher)
    assert float(value) == pytest.approx(1.6734393e-5, rel=1e-5)


def unit(values: list[Tensor]) -> list[Tensor]:
    norm = sum(value**2 for value in values) ** 0.5
    return [value / norm for value in values]


def naive_pixel(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    errors = []
    for image in range(len(student[0])):
        changes = []
        for levels in (student, teacher):
            maps = [level[image].flatten(1) for level in levels]
            attentions = [
                unit([sum(cell**2) / len(cell) for cell in level.T]) for level in maps
            ]
            changes += [
                unit([b - a for a, b in zip(*pair, strict=True)])
                for pair in combinations(attentions, 2)
            ]
        half = len(changes) // 2
        for pair in zip(changes[:half], changes[half:], strict=True):
            errors += [(a - b) ** 2 for a, b in zip(*pair, strict=True)]
    return sum(errors) / len(errors)


def naive_category(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    errors = []
    for *sides, label in zip(student, teacher, labels, strict=True):
        grams = []
        for logits in sides:
            pooled = []
            for y in range(0, label.shape[0], 2):
                for x in range(0, label.shape[1], 2):
                    valid = label[y : y + 2, x : x + 2] != 255
                    if valid.any():
                        pooled.append(logits[:, y : y + 2, x : x + 2][:, valid])
            cells = torch.stack([(cell.mean(1) / 4).exp() for cell in pooled], 1)
            shares = [row / sum(row) for row in cells]
            grams.append([(a * b).sum() for a in shares for b in shares])
        errors += [(a - b) ** 2 for a, b in zip(*grams, strict=True)]
    return sum(errors) / len(errors)


def test_pixel_loss_matches_naive_loops() -> None:
    teachers = [TEACHER.double(), TEACHER[:, :3].double() ** 2, 1 - TEACHER.double()]
    found = []
    for compute in (dsd_pixel_loss, naive_pixel):
        student = STUDENT.double().requires_grad_()
        value = compute([student, student.sin(), student[:, :2]], teachers)
        value.backward()
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('labels', [torch.zeros_like(IGNORED), IGNORED])
def test_category_loss_matches_naive_loops(labels: Tensor) -> None:
    teacher = TEACHER.double()
    found = []
    for compute in (
        lambda s: dsd_category_loss(s, teacher, 4.0, samples_of(labels)),
        lambda s: naive_category(s, teacher, labels),
    ):
        student = STUDENT.double().requires_grad_()
        value = compute(student)
        value.backward()
        found.append((value.detach(), student.grad))
        assert torch.equal(student.grad.abs().sum(1) > 0, labels != 255)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


def test_scales_of_layers_and_shifts_of_classes_do_not_change_the_losses() -> None:
    student, teacher = [STUDENT, STUDENT**2], [TEACHER, TEACHER**2]
    value = dsd_pixel_loss([5 * student[0], student[1] / 3], teacher)
    torch.testing.assert_close(value, dsd_pixel_loss(student, teacher))
    value = dsd_category_loss(STUDENT + waves((2, 4, 1, 1), 0.7, 0.3), TEACHER)
    torch.testing.assert_close(value, dsd_category_loss(STUDENT, TEACHER))


def test_layers_with_equal_attention_give_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    value = dsd_pixel_loss([student, 3 * student], [TEACHER, TEACHER])
    value.backward()
    assert value < 1e-4
    assert student.grad.isfinite().all()


def test_images_of_ignored_pixels_give_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    samples = samples_of(torch.full((2, 6, 5), 255))
    value = dsd_category_loss(student, TEACHER, 4.0, samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


class Layers(nn.Module):
    """The loss of three layers, taken from the channels of one map."""

    def __init__(self, loss: DSDPixelLoss) -> None:
        super().__init__()
        self.loss_weight = loss.loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        sides = (
            [maps[:, :1], maps[:, 1:3], maps[:, 3:]] for maps in (student, teacher)
        )
        return DSDPixelLoss(self.loss_weight)(*sides)


def test_keeps_the_loss_contract() -> None:
    check_loss(Layers(DSDPixelLoss(100.0)), STUDENT, TEACHER)
    # A large weight, because the values are small compared to the tolerances.
    check_loss(DSDCategoryLoss(loss_weight=1e5), STUDENT, TEACHER)
    check_loss(
        DSDCategoryLoss(loss_weight=1e5),
        STUDENT,
        TEACHER,
        data_samples=samples_of(IGNORED),
    )


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'the wire has 1; record .*layer\[2-4\]'):
        dsd_pixel_loss([STUDENT], [TEACHER])
    with pytest.raises(ValueError, match=r'one size.*\(2, 4, 3, 5\)\].*Resize'):
        dsd_pixel_loss([STUDENT, STUDENT[:, :, :3]], [TEACHER, TEACHER])
    with pytest.raises(ValueError, match=r'\(N, C, H, W\), got .*\(4, 6, 5\)\]'):
        dsd_pixel_loss([STUDENT] * 2, [TEACHER, TEACHER[0]])
    with pytest.raises(ValueError, match=r'maps \(N, K, H, W\), got'):
        dsd_category_loss(STUDENT[:, :, 0, 0], TEACHER[:, :, 0, 0])
    with pytest.raises(ValueError, match='DSDCategoryLoss: tau .* got 0'):
        DSDCategoryLoss(tau=0.0)
