import math

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox import losses
from kdtoolbox.losses.logits.class_logits import read_logits
from kdtoolbox.losses.logits.kd import KDLoss, kd_loss
from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.testing import check_loss

LOSSES = ['CTKDLoss', 'DISTLoss', 'DKDLoss', 'GuidedKDLoss', 'KDLoss', 'LSKDLoss']
LOSSES += ['NKDLoss', 'NormKDLoss', 'SDDLoss', 'SphericalKDLoss', 'TTMLoss', 'WSLDLoss']
MAPS = waves((2, 4, 6, 5), 0.37, 0.11), 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


def test_ignored_pixels_do_not_count() -> None:
    labels = torch.zeros(2, 6, 5, dtype=torch.long)
    labels[0, :3], labels[1, :, 2] = 255, 255
    student = MAPS[0].double().requires_grad_()
    value = kd_loss(student, MAPS[1].double(), 2.0, samples_of(labels))
    rows = [x.double().movedim(1, -1)[labels != 255] for x in MAPS]
    torch.testing.assert_close(value, kd_loss(*rows, tau=2.0))
    value.backward()
    reached = student.grad.abs().sum(1) > 0
    assert torch.equal(reached, labels != 255)


def test_batch_of_ignored_pixels_gives_zero() -> None:
    student = MAPS[0].clone().requires_grad_()
    samples = samples_of(torch.full((2, 6, 5), 255))
    value = kd_loss(student, MAPS[1], 1.0, samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_infinite_logit_of_an_ignored_pixel_does_not_change_the_loss() -> None:
    labels = torch.zeros(2, 6, 5, dtype=torch.long)
    labels[0, 0, 0] = 255
    teacher = MAPS[1].clone()
    expected = kd_loss(MAPS[0], teacher, 1.0, samples_of(labels))
    teacher[0, :, 0, 0] = math.inf
    assert kd_loss(MAPS[0], teacher, 1.0, samples_of(labels)) == expected


@pytest.mark.parametrize('broken', [(math.inf, 0), (math.nan, 0), (math.inf, 1)])
@pytest.mark.parametrize('kind', LOSSES)
def test_logits_of_ignored_pixels_do_not_change_the_gradient(
    kind: str, broken: tuple[float, int]
) -> None:
    value, side = broken
    labels = (torch.arange(60) % 4).reshape(2, 6, 5)
    labels[0, 1, :3] = 255
    gradients = []
    for logit in (0.5, value):
        maps = [x.clone() for x in MAPS]
        maps[side][:, 0].masked_fill_(labels == 255, logit)
        arguments = dict(ramp_iterations=4) if kind == 'CTKDLoss' else {}
        loss = getattr(losses, kind)(**arguments)
        student = maps[0].requires_grad_()
        output = loss(student, maps[1], data_samples=samples_of(labels))
        terms = [output] if isinstance(output, Tensor) else [*output.values()]
        with torch.autograd.set_detect_anomaly(True):
            torch.stack(terms).sum().backward()
        parameter_grads = [parameter.grad for parameter in loss.parameters()]
        gradients.append([student.grad, *parameter_grads])
    assert all(map(torch.equal, *gradients))
    assert gradients[0][0].any()


def test_sigmoid_treats_each_class_as_binary() -> None:
    student, teacher = (x.double() for x in MAPS)
    value = kd_loss(student, teacher, use_sigmoid=True)
    s, t = student.sigmoid(), teacher.sigmoid()
    expected = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    torch.testing.assert_close(value, expected.mean())


def test_sigmoid_rows_get_binary_labels() -> None:
    rows = waves((3, 4), 0.9, 0.3)
    logits = read_logits(
        rows, rows, labels=torch.tensor([2, IGNORED, 0]), use_sigmoid=True
    )
    assert logits.labels.tolist() == [0, 0, 1, 0, *[1, 0, 0, 0], 1, 0, 0, 0]
    assert logits.valid.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert torch.equal(logits.student[2], torch.tensor([0.0, rows[0, 2]]))


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_keeps_the_loss_contract(use_sigmoid: bool) -> None:
    labels = (torch.arange(60) % 4).reshape(2, 6, 5)
    labels[0, 1, :3] = 255
    loss = KDLoss(tau=2.0, use_sigmoid=use_sigmoid)
    check_loss(loss, *MAPS, data_samples=samples_of(labels))
    check_loss(loss, MAPS[0][:, :, 0, 0], MAPS[1][:, :, 0, 0])


@pytest.mark.parametrize('ignored', [0, 7, -100])
def test_255_is_a_class_if_ignore_index_differs(ignored: int) -> None:
    labels = torch.tensor([[[255, ignored]]])
    [sample] = samples_of(labels)
    sample.metainfo = dict(ignore_index=ignored)
    maps = torch.zeros(1, 300, 1, 2)
    logits = read_logits(maps, maps, [sample])
    assert logits.valid.tolist() == [[[True, False]]]
    assert logits.labels.tolist() == [[[255, 0]]]


def test_255_is_a_class_in_labels_of_rows() -> None:
    rows, labels = torch.zeros(2, 300), torch.tensor([255, 0])
    logits = read_logits(rows, rows, labels=labels)
    assert logits.valid.all()
    assert torch.equal(logits.labels, labels)
