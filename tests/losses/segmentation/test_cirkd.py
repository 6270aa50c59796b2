import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from pixels import samples_of
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.logits.pixel_labels import pixel_labels
from kdtoolbox.losses.segmentation.cirkd import cross_image_divergence
from kdtoolbox.losses.segmentation.cirkd_memory import memory_divergence
from kdtoolbox.losses.segmentation.class_queue import ClassQueue
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 3, 6, 5), 0.23, 0.17, 0.4)
LABELS = (torch.arange(60) // 4 % 4).reshape(2, 6, 5)
LABELS[0, 1:3, 1:], LABELS[1, :, 2], LABELS[0, 5] = 255, 255, 255


def mini_batch(**changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.CIRKDMiniBatchLoss', **changes))


def memory(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = dict(pixel_slots=40, region_slots=6, pixel_keys=20, region_keys=9)
    arguments = dict(num_classes=5, student_channels=4, teacher_channels=3)
    arguments |= dict(sizes, loss_weight=1.0) | changes
    return MODELS.build(dict(type='kdtoolbox.CIRKDMemoryLoss', **arguments))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_mini_batch_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('cirkd', 'mini_batch', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = mini_batch(pool_size=1)(student, golden.inputs['teacher'])
    assert_golden(loss, [student], golden)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_memory_matches_golden_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden('cirkd', 'memory', dtype)
    student, inputs = golden.inputs['student'].requires_grad_(), golden.inputs
    loss = memory(num_classes=4, student_channels=6, teacher_channels=8).to(dtype)
    weights = golden.params.items()
    weights = {k.removeprefix('project_head.'): v for k, v in weights}
    loss.project.load_state_dict(weights, strict=False)
    # Use the queue contents of the authors' code, including its faults.
    monkeypatch.setattr(loss, 'remember', lambda *args: None)
    for queue, name in ((loss.pixels, 'pixel'), (loss.regions, 'region')):
        keys = golden.outputs[f'{name}_queue_after'][:, inputs[f'{name}_index']]
        monkeypatch.setattr(queue, 'draw', lambda count, k=keys: k.flatten(0, 1))
    terms = loss(student, inputs['teacher'], samples_of(inputs['labels']))
    for name, value in terms.items():
        expected = golden.outputs[name].to(dtype)
        torch.testing.assert_close(value.detach(), expected, rtol=2e-5, atol=0)
    assert_golden(sum(terms.values()), [student], golden)


def test_stored_regions_match_golden_values() -> None:
    golden = load_golden('cirkd', 'memory')
    sizes = dict(num_classes=4, student_channels=6, teacher_channels=8, region_slots=8)
    loss = memory(**sizes).double()
    loss.regions.keys.copy_(golden.inputs['region_queue'])
    labels = samples_of(golden.inputs['labels'])
    labels = pixel_labels(labels, (5, 6), torch.device('cpu'))
    loss.remember(golden.inputs['teacher'], labels)
    torch.testing.assert_close(loss.regions.keys, golden.outputs['region_queue_after'])


def naive_mini_batch(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Loop over pairs of images and valid positions."""
    rows = []
    for i, p_labels in enumerate(labels):
        for j, q_labels in enumerate(labels):
            for p in (p_labels.flatten() != 255).nonzero().flatten():
                similarities = []
                for maps in (student, teacher):
                    there = maps[j].flatten(1)[:, q_labels.flatten() != 255]
                    here = maps[i].flatten(1)[:, p, None]
                    cosines = torch.cosine_similarity(here, there, dim=0)
                    similarities.append((cosines / 0.1).log_softmax(0))
                s, t = similarities
                if len(s):
                    rows.append((t.exp() * (t - s)).sum())
    return torch.stack(rows).mean()


@pytest.mark.parametrize('labels', [LABELS, LABELS.where(LABELS != 0, 255)])
def test_mini_batch_matches_naive_loops(labels: Tensor) -> None:
    results, loss = [], mini_batch(pool_size=1)
    for compute in (
        lambda s: loss(s, TEACHER.double(), samples_of(labels)),
        lambda s: naive_mini_batch(s, TEACHER.double(), labels),
    ):
        student = STUDENT.double().requires_grad_()
        value = compute(student)
        value.backward()
        results.append((value.detach(), student.grad))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    assert torch.equal(results[0][1].abs().sum(1) > 0, labels != 255)


def test_pooled_squares_are_averages_of_valid_pixels() -> None:
    labels = torch.zeros(1, 5, 5, dtype=torch.long)
    labels[0, :3, :2] = 255
    maps = [x[:1, :, :5].double() for x in (STUDENT, TEACHER)]
    pooled, valid = [], []
    for y in (0, 2, 4):
        for x in (0, 2, 4):
            mask = (labels[0, y : y + 2, x : x + 2] != 255).flatten()
            valid.append(mask.any())
            squares = [m[0, :, y : y + 2, x : x + 2].flatten(1) for m in maps]
            cells = [square[:, mask] for square in squares]
            pooled.append([c.sum(1) / max(c.shape[1], 1) for c in cells])
    student, teacher = (torch.stack(x, 1)[None] for x in zip(*pooled, strict=True))
    expected = cross_image_divergence(student, teacher, torch.stack(valid)[None])
    assert len(valid) - sum(valid) == 1
    value = mini_batch(pool_size=2)(*maps, samples_of(labels))
    torch.testing.assert_close(value, expected)


def test_memory_matches_naive_loops() -> None:
    student, teacher = (x.movedim(1, -1)[0, 0].double() for x in (STUDENT, TEACHER))
    student, keys = student[:, :3], functional.normalize(waves((7, 3), 0.7, 0.3), dim=1)
    valid = torch.tensor([True, False, True, True, False])
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student[valid], teacher[valid], strict=True):
        p, q = (
            torch.stack([x @ key.double() / x.norm() / 0.2 for key in keys]).softmax(0)
            for x in (t, s)
        )
        total += (p * (p / q).log()).sum() / 3
    value = memory_divergence(student, teacher, keys, valid, tau=0.2)
    torch.testing.assert_close(value, total, rtol=1e-6, atol=0)


def test_queues_store_only_pixels_and_means_of_their_class() -> None:
    loss = memory().double()
    blank = loss.pixels.keys.clone(), loss.regions.keys.clone()
    rows = functional.normalize(TEACHER.double(), dim=1).movedim(1, -1)
    teacher = TEACHER.double().where((LABELS != 255)[:, None], math.nan)
    loss.remember(teacher, LABELS)
    for k in range(4):
        pixels = [row[labels == k] for row, labels in zip(rows, LABELS, strict=True)]
        end, count = len(torch.cat(pixels)), sum(len(x) > 0 for x in pixels)
        assert int(loss.pixels.ends[k]) == end
        distances = torch.cdist(loss.pixels.keys[k, :end], torch.cat(pixels))
        assert sorted(distances.argmin(1).tolist()) == list(range(end))
        assert distances.min(1).values.max() < 1e-6
        means = [functional.normalize(x.mean(0), dim=0) for x in pixels if len(x)]
        torch.testing.assert_close(loss.regions.keys[k, :count], torch.stack(means))
        assert torch.equal(loss.pixels.keys[k, end:], blank[0][k, end:])
        assert torch.equal(loss.regions.keys[k, count:], blank[1][k, count:])
    # Class 4 is in no image.
    assert torch.equal(loss.pixels.keys[4], blank[0][4])
    assert torch.equal(loss.regions.keys[4], blank[1][4])


def test_image_adds_16_random_pixels_per_class() -> None:
    other = memory(pixel_slots=16).double()
    same = torch.zeros_like(LABELS)[:1]
    other.remember(TEACHER[:1].double(), same)
    first = other.pixels.keys.clone()
    assert other.pixels.ends.tolist() == [0] * 5
    other.remember(TEACHER[:1].double(), same)
    assert not torch.equal(other.pixels.keys[0], first[0])
    assert torch.equal(other.pixels.keys[1:], first[1:])


def test_queue_overwrites_its_oldest_entries() -> None:
    queue, filled = ClassQueue(2, slots=3, channels=1).double(), [[], []]
    for step, count in enumerate((2, 0, 2, 5, 1)):
        entries = torch.arange(10.0 * step, 10 * step + 10).reshape(2, 5, 1).double()
        present = torch.zeros(2, 5, dtype=torch.bool)
        present[0, 5 - count :], present[1, :1] = True, True
        queue.push(entries, present)
        filled[0] += entries[0, 5 - count :, 0].tolist()[:3]
        filled[1] += entries[1, :1, 0].tolist()
        for k in range(2):
            newest = set(filled[k][-3:])
            assert newest <= set(queue.keys[k].flatten().tolist())
            assert int(queue.ends[k]) == len(filled[k]) % 3
    draw = queue.draw(2).reshape(2, 2)
    places = [
        [queue.keys[k].flatten().tolist().index(x) for x in draw[k]] for k in (0, 1)
    ]
    assert places[0] == places[1]
    assert len(set(places[0])) == 2


def test_memory_is_saved_and_only_updated_in_training() -> None:
    loss = memory()
    assert loss.eval()(STUDENT, TEACHER, samples_of(LABELS))['pixel'] > 0
    assert not loss.pixels.ends.any()
    loss.train()(STUDENT, TEACHER, samples_of(LABELS))
    assert loss.pixels.ends.any()
    resumed = memory(pixel_slots=40)
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed.pixels.keys, loss.pixels.keys)
    assert torch.equal(resumed.regions.ends, loss.regions.ends)
    assert loss.pixels.keys.dtype == torch.half


@pytest.mark.parametrize('max_anchors', [7, 60])
def test_memory_compares_only_valid_pixels(max_anchors: int) -> None:
    loss = memory(max_anchors=max_anchors)
    # Batch norm would mix the pixels.
    loss.project = torch.nn.Conv2d(4, 3, 1, bias=False)
    student = STUDENT.clone().requires_grad_()
    sum(loss(student, TEACHER, samples_of(LABELS)).values()).backward()
    reached = student.grad.abs().sum(1) > 0
    assert not (reached & (LABELS == 255)).any()
    assert reached.sum() == min(max_anchors, int((LABELS != 255).sum()))


@pytest.mark.parametrize('build', [mini_batch, memory])
def test_batch_of_ignored_pixels_gives_zero(build: Any) -> None:
    student, loss = STUDENT.clone().requires_grad_(), build()
    value = loss(student, TEACHER, samples_of(torch.full_like(LABELS, 255)))
    value = sum(value.values()) if isinstance(value, dict) else value
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_keeps_the_loss_contract() -> None:
    maps, labels = (STUDENT[..., :3], TEACHER[..., :3]), samples_of(LABELS[..., :3])
    check_loss(mini_batch(), maps[0][:, :3], maps[1], data_samples=labels)
    # In evaluation mode, because batch norm raises on one value per channel.
    loss, options = memory().eval(), dict(zero_at_equality=False, gradcheck=False)
    check_loss(loss, *maps, **options, data_samples=labels)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='differ in size; put a ResizeConnector'):
        mini_batch()(STUDENT, TEACHER[..., 1:])
    with pytest.raises(ValueError, match='set student_channels=3, teacher_channels=3'):
        memory()(TEACHER, TEACHER, samples_of(LABELS))
    with pytest.raises(ValueError, match='no `gt_sem_seg`; distil a segmentor'):
        memory()(STUDENT, TEACHER, [SimpleNamespace()])
    for build in (mini_batch, memory):
        with pytest.raises(ValueError, match='tau must be a finite number above 0'):
            build(tau=0.0)
