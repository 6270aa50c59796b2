from types import SimpleNamespace

import pytest
import torch
from golden import assert_golden, load_golden, waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.logits.pixel_labels import IGNORED, pixel_labels
from kdtoolbox.losses.segmentation.ifvd import IFVDLoss, center_similarity, ifvd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 5, 6, 5), 0.23, 0.17, 0.4)


def labels_of_patches() -> Tensor:
    labels = torch.zeros(2, 24, 20, dtype=torch.long)
    labels[:, :12], labels[:, :, 10:] = 1, 2
    labels[0, :4, :4], labels[1, 20:] = 255, 255
    return labels


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['basic', 'same_size_labels'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('ifvd', case, dtype)
    student, labels = golden.inputs['student'].requires_grad_(), golden.inputs['labels']
    # Without ignored pixels the divisor equals that of the authors' code.
    has_ignored = bool((labels == 255).any())
    assert has_ignored == (case == 'basic')
    config = dict(type='kdtoolbox.IFVDLoss', loss_weight=1.0)
    loss = MODELS.build(dict(config, legacy_count_ignored=has_ignored))
    value = loss(student, golden.inputs['teacher'], samples_of(labels))
    assert_golden(value, [student], golden)


def test_value_for_closed_form_inputs() -> None:
    teacher = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4).double()
    samples = samples_of(labels_of_patches())
    loss = IFVDLoss(legacy_count_ignored=True, loss_weight=1.0)
    value = loss(STUDENT.double(), teacher, samples)
    assert float(value) == pytest.approx(0.3508004, rel=1e-6)


def naive_similarity(image: Tensor, labels: Tensor) -> list[Tensor]:
    pixels = [
        (image[:, y, x], int(labels[y, x]))
        for y in range(labels.shape[0])
        for x in range(labels.shape[1])
    ]
    cosines = []
    for feature, label in pixels:
        if label == IGNORED:
            continue
        own = [f for f, other in pixels if other == label]
        center = sum(own) / len(own)
        length = (feature**2).sum() ** 0.5 * (center**2).sum() ** 0.5
        cosines.append((feature * center).sum() / length)
    return cosines


def naive(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    errors = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        pairs = naive_similarity(s, label), naive_similarity(t, label)
        errors += [(a - b) ** 2 for a, b in zip(*pairs, strict=True)]
    return sum(errors) / len(errors)


def test_matches_naive_loops() -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    labels = pixel_labels(samples_of(labels_of_patches()), (6, 5), student.device)
    value = ifvd_loss(student, TEACHER.double(), labels)
    expected = naive(reference, TEACHER.double(), labels)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)
    assert torch.equal(student.grad.abs().sum(1) > 0, labels != IGNORED)


def test_scale_of_the_features_does_not_change_the_loss() -> None:
    labels = pixel_labels(samples_of(labels_of_patches()), (6, 5), STUDENT.device)
    value = ifvd_loss(STUDENT, TEACHER, labels)
    scaled = ifvd_loss(7 * STUDENT, 0.1 * TEACHER, labels)
    torch.testing.assert_close(scaled, value)


def test_single_pixel_of_a_class_has_cosine_one() -> None:
    labels = torch.arange(30).reshape(1, 6, 5).expand(2, -1, -1)
    cosines = center_similarity(STUDENT, labels)
    torch.testing.assert_close(cosines, torch.ones(2, 6, 5))


@pytest.mark.parametrize('label', [0, IGNORED])
def test_no_classes_or_zero_features_give_zero(label: int) -> None:
    student = torch.zeros(2, 4, 6, 5, requires_grad=True)
    maps = student if label == 0 else student + STUDENT
    teacher = torch.zeros(2, 5, 6, 5) if label == 0 else TEACHER
    value = ifvd_loss(maps, teacher, torch.full((2, 6, 5), label))
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('legacy', [False, True])
def test_keeps_the_loss_contract(legacy: bool) -> None:
    loss, samples = IFVDLoss(legacy, 3.0), samples_of(labels_of_patches())
    check_loss(loss, STUDENT, TEACHER[:, :4], data_samples=samples)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='`gt_sem_seg`.*LoadAnnotations'):
        IFVDLoss()(STUDENT, TEACHER, [SimpleNamespace()] * 2)
    samples = samples_of(labels_of_patches())
    with pytest.raises(ValueError, match=r'\(2, 5, 6, 4\) differ in size.*Resize'):
        IFVDLoss()(STUDENT, TEACHER[..., :4], samples)
    with pytest.raises(ValueError, match=r'maps of shape \(N, C, H, W\)'):
        ifvd_loss(STUDENT, TEACHER[0], labels_of_patches())
