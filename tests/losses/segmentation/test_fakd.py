from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.logits.kd import kd_loss
from kdtoolbox.losses.segmentation.fakd import FAKDLoss, surrogate_logits
from kdtoolbox.testing import check_loss

FEATURES = waves((2, 3, 4, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 4, 5), 0.23, 0.17, 0.4)
WEIGHTS = waves((4, 3, 1, 1), 0.9, 0.3)
LABELS = (torch.arange(40) // 3 % 3).reshape(2, 4, 5)
LABELS[0, 1, :3], LABELS[1, :, 4] = 255, 2


def build(**changes: Any) -> FAKDLoss:
    sizes = dict(num_classes=4, student_channels=3, ramp_iterations=3, strength=0.5)
    return FAKDLoss(**sizes | dict(tau=2.0) | changes)


def step(loss: FAKDLoss, features: Tensor, labels: Tensor = LABELS) -> Tensor:
    weights = WEIGHTS.to(features.dtype)
    logits = functional.conv2d(features, weights)
    teacher = TEACHER.to(features.dtype)
    return loss(logits, teacher, features, weights, samples_of(labels))


def naive(features: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Compute the loss of a first batch with its own variances, pixel by pixel."""
    rows = features.movedim(1, -1)
    variances = [rows.detach()[k == LABELS].var(0, unbiased=False) for k in range(3)]
    divergences = []
    for n, y, x in (LABELS != 255).nonzero().tolist():
        label, logits = LABELS[n, y, x], []
        for w in weights:
            gap = (w - weights[label]) ** 2
            moved = strength / 2 * sum(gap * variances[label])
            logits.append((sum(w * rows[n, y, x]) + moved) / 2)
        s = torch.stack(logits).log_softmax(0)
        t = (TEACHER.double()[n, :, y, x] / 2).log_softmax(0)
        divergences.append(4 * sum(t.exp() * (t - s)))
    return sum(divergences) / len(divergences)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_naive_loops(dtype: torch.dtype) -> None:
    loss = build().to(dtype)
    loss.steps += 2
    results = []
    for kind in (dtype, torch.float64):
        features, weights = (
            x.to(kind, copy=True).requires_grad_() for x in (FEATURES, WEIGHTS)
        )
        if results:
            value = naive(features, weights[..., 0, 0], 0.5 * 2 / 3)
        else:
            logits = functional.conv2d(features, weights)
            samples = samples_of(LABELS)
            value = loss(logits, TEACHER.to(kind), features, weights, samples)
        value.backward()
        results.append([value.detach(), features.grad, weights.grad])
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    for found, expected in zip(*results, strict=True):
        atol = rtol * float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_surrogate_bounds_the_cross_entropy_of_noisy_features() -> None:
    weights, variances = WEIGHTS[..., 0, 0].double(), torch.rand(4, 3).double()
    noise = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0)).double()
    for label in range(4):
        feature, labels = FEATURES[0, :, 0, label].double(), torch.tensor([label])
        moved = feature + noise * (0.5 * variances[label]).sqrt()
        mean = functional.cross_entropy(moved @ weights.T, labels.expand(len(moved)))
        logits = (weights @ feature).reshape(1, 4, 1, 1)
        labels = labels.reshape(1, 1, 1)
        strength = torch.tensor(0.5).double()
        raised = surrogate_logits(logits, labels, weights, variances, strength)
        plain, bound = (functional.cross_entropy(x, labels) for x in (logits, raised))
        assert plain < mean < bound


def test_statistics_cover_all_pixels_seen() -> None:
    loss, seen = build().double(), []
    for seed in range(3):
        features = (seed + 1) * FEATURES.double().roll(seed) + 100
        # One batch lacks a class, in another all pixels are ignored.
        labels = [LABELS, LABELS.where(LABELS != 1, 255), LABELS | 255][seed]
        step(loss, features, labels)
        seen.append((features.movedim(1, -1).flatten(0, 2), labels.flatten()))
    rows, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for k in range(3):
        own = rows[labels == k]
        assert loss.counts[k] == len(own)
        torch.testing.assert_close(loss.means[k], own.mean(0))
        torch.testing.assert_close(loss.variances[k], own.var(0, unbiased=False))
    assert not loss.variances[3].any()


def test_lambda_grows_to_its_final_value_only_in_training() -> None:
    loss, features = build().double(), FEATURES.double()
    plain = functional.conv2d(features, WEIGHTS.double())
    expected = kd_loss(plain, TEACHER.double(), 2.0, samples_of(LABELS))
    values = [step(loss, features) for _ in range(5)]
    torch.testing.assert_close(values[0], expected)
    assert len({round(float(value), 12) for value in values}) == 4
    torch.testing.assert_close(values[3], values[4])
    loss.eval()
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    step(loss, 2 * features)
    assert all(torch.equal(before[k], v) for k, v in loss.state_dict().items())
    resumed = build().double()
    resumed.load_state_dict(before)
    torch.testing.assert_close(step(resumed, features), values[4])


def test_two_forward_passes_before_one_backward_pass() -> None:
    loss = build()
    loss.steps += 3
    features = FEATURES.clone().requires_grad_()
    (step(loss, features) + step(loss, 2 * features)).backward()
    assert features.grad.any()


def test_ignored_pixels_get_no_gradient() -> None:
    loss = build()
    loss.steps += 3
    features = FEATURES.clone().requires_grad_()
    step(loss, features).backward()
    assert torch.equal(features.grad.abs().sum(1) > 0, LABELS != 255)
    features.grad = None
    value = step(loss, features, torch.full_like(LABELS, 255))
    value.backward()
    assert value == 0
    assert not features.grad.any()


class Wired(FAKDLoss):
    """The loss as a function of features, with a fixed classifier."""

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list) -> Tensor:
        weights = WEIGHTS[:3].to(student.device, self.means.dtype)
        logits = functional.conv2d(student.to(weights.dtype), weights)
        return super().forward(logits, teacher, student, weights, data_samples)


def test_keeps_the_loss_contract() -> None:
    loss = Wired(num_classes=3, student_channels=3, ramp_iterations=1).eval()
    loss.steps += 1
    loss.variances += 0.3
    maps = FEATURES[..., :3, :2], TEACHER[:, :3, :3, :2]
    samples = samples_of(LABELS[..., :3, :2])
    check_loss(loss, *maps, data_samples=samples, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'at least 1, got 0; .*ramp_iterations=80000'):
        build(ramp_iterations=0)
    with pytest.raises(ValueError, match=r'FAKDLoss: tau .*tau=1.0'):
        build(tau=0.0)
    with pytest.raises(ValueError, match=r'\(2, 8, 4, 5\).*got .*\(2, 3, 4, 5\)'):
        step(build(student_channels=8), FEATURES)
    logits = functional.conv2d(FEATURES, WEIGHTS)
    with pytest.raises(ValueError, match='FAKDLoss reads true classes'):
        build()(logits, TEACHER, FEATURES, WEIGHTS, [SimpleNamespace()])
