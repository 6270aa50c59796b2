import math
from types import SimpleNamespace

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.features.cwd import channel_wise_divergence
from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.losses.segmentation.bpkd import BPKDLoss, bpkd_terms, edge_shares
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 3, 4, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 3, 4, 5), 0.23, 0.17, 0.4)
# Two classes side by side in the first image, all three in blocks in the second.
LABELS = torch.zeros(2, 8, 15, dtype=torch.long)
LABELS[0, :, 8:] = 1
LABELS[1, 4:, :6], LABELS[1, :, 12:] = 2, 1
HOLES = LABELS.clone()
# The nearest labels of a 4 x 5 map are those of every second row and third column.
HOLES[0, :2, :3], HOLES[1, 4, 6], HOLES[1, 1, 7] = 255, 255, 255


def naive_shares(labels: Tensor, radius: int) -> Tensor:
    """Compute the shares of a 4 x 5 map pixel by pixel, with a separate erosion."""
    height, width = labels.shape[1:]
    shares, counts = torch.zeros(2, len(labels), 3, 4, 5, dtype=torch.float64)
    for n, image in enumerate(labels.tolist()):
        for y, x in [(y, x) for y in range(height) for x in range(width)]:
            if image[y][x] == 255:
                continue
            rows = range(max(y - radius, 0), min(y + radius + 1, height))
            columns = range(max(x - radius, 0), min(x + radius + 1, width))
            window = [image[i][j] for i in rows for j in columns]
            for k in range(3):
                dilated = any(label == k for label in window)
                eroded = all(label == k for label in window)
                shares[n, k, y // 2, x // 3] += dilated - eroded
                counts[n, k, y // 2, x // 3] += 1
    return shares / counts.clamp(min=1)


def naive(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> list[Tensor]:
    """Compute body and edge image by image and class by class."""
    shares = naive_shares(labels, radius=2)
    body, edge = torch.zeros(2, dtype=torch.float64)
    for n, nearest in enumerate(labels[:, ::2, ::3]):
        cells = (nearest != 255).nonzero().tolist()
        for k in range(3):
            inside = [1 - shares[n, k, y, x] for y, x in cells]
            sides = [
                [m * maps[n, k, y, x] for m, (y, x) in zip(inside, cells, strict=True)]
                for maps in (student, teacher)
            ]
            p, q = (torch.stack(side).div(tau).softmax(0) for side in sides)
            body = body + tau**2 * (q * (q / p).log()).sum() / 6
            total = sum(shares[n, k, y, x] for y, x in cells)
            for y, x in cells:
                m = shares[n, :, y, x]
                p = (m * student[n, :, y, x] / tau).softmax(0)
                q = (m * teacher[n, :, y, x] / tau).softmax(0)
                divergence = tau**2 * (q * (q / p).log()).sum()
                edge = edge + divergence * m[k] / max(total, 1) / 2
    return [body, edge]


@pytest.mark.parametrize('labels', [LABELS, HOLES], ids=['all', 'holes'])
@pytest.mark.parametrize('radius', [1, 3])
def test_shares_are_the_dilation_minus_the_erosion(labels: Tensor, radius: int) -> None:
    shares = edge_shares(labels.where(labels != 255, IGNORED), 3, (4, 5), radius)
    # float32 rounding of the mean over 6 pixels, divided by the mean of valid pixels.
    atol = 8 * torch.finfo(torch.float32).eps
    expected = naive_shares(labels, radius)
    torch.testing.assert_close(shares.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize('labels', [LABELS, HOLES], ids=['all', 'holes'])
@pytest.mark.parametrize('index', [0, 1], ids=['body', 'edge'])
def test_matches_naive_loops(labels: Tensor, index: int) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    terms = bpkd_terms(student, teacher, samples_of(labels), tau=3.0, radius=2)
    value = terms[('body', 'edge')[index]]
    expected = naive(reference, teacher, labels, tau=3.0)[index]
    # The shares are float32.
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-5, atol=1e-8)


def test_weights_multiply_their_terms() -> None:
    inputs = STUDENT, TEACHER, samples_of(LABELS)
    terms = bpkd_terms(*inputs)
    weighted = BPKDLoss(loss_weight=0.5)(*inputs)
    torch.testing.assert_close(weighted['body'], 10 * terms['body'])
    torch.testing.assert_close(weighted['edge'], 50 * terms['edge'])


def test_equals_cwd_without_edges() -> None:
    terms = bpkd_terms(STUDENT, TEACHER, samples_of(torch.zeros_like(LABELS)))
    assert terms['edge'] == 0
    assert terms['body'] == channel_wise_divergence(STUDENT, TEACHER, tau=4.0)


def test_ignored_pixels_do_not_count() -> None:
    nearest = HOLES[:, ::2, ::3]
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    expected = bpkd_terms(student, teacher, samples_of(HOLES))
    teacher.movedim(1, -1)[nearest == 255] = math.inf
    terms = bpkd_terms(student, teacher, samples_of(HOLES))
    assert terms == expected
    sum(terms.values()).backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, nearest != 255)


def test_batch_of_ignored_pixels_gives_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    value = sum(
        bpkd_terms(student, TEACHER, samples_of(torch.full_like(LABELS, 255))).values()
    )
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('labels', [LABELS, HOLES], ids=['all', 'holes'])
def test_keeps_the_loss_contract(labels: Tensor) -> None:
    loss = BPKDLoss(radius=1, loss_weight=0.1)
    check_loss(loss, STUDENT, TEACHER, data_samples=samples_of(labels))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'expected logits as maps .* \(2, 3\)'):
        bpkd_terms(STUDENT[..., 0, 0], TEACHER[..., 0, 0], samples_of(LABELS))
    with pytest.raises(ValueError, match='differ in shape.*ResizeConnector'):
        bpkd_terms(STUDENT, TEACHER[..., :4], samples_of(LABELS))
    for samples in ([], [SimpleNamespace()] * 2):
        with pytest.raises(ValueError, match='BPKDLoss reads true .* `gt_sem_seg`'):
            bpkd_terms(STUDENT, TEACHER, samples)
    with pytest.raises(ValueError, match='BPKDLoss: tau must be .* got -1'):
        BPKDLoss(tau=-1)
    for radius in (0, 1.5):
        with pytest.raises(ValueError, match=rf'radius must be .* got {radius}'):
            BPKDLoss(radius=radius)
