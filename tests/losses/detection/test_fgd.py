from collections.abc import Sequence
from math import ceil, floor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.detection.fgd import GlobalContext, fgd_terms
from kdtoolbox.losses.detection.fgd_masks import object_masks
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
BOXES = [
    torch.tensor([[2.0, 3.0, 20.0, 30.0], [10.0, 10.0, 39.0, 47.0]]),
    torch.tensor([[0.0, 0.0, 15.0, 12.0]]),
]
TERMS = dict(foreground='fg', background='bg', attention='mask', relation='rela')


def samples_of(boxes: Sequence[Tensor], shape: tuple = (48, 40)) -> list:
    """Images, the first unpadded, and the others of a shape."""
    labels = [torch.zeros(len(box), dtype=torch.long) for box in boxes]
    shapes = [(48, 40)] + [shape] * (len(boxes) - 1)
    return [
        SimpleNamespace(
            gt_instances=SimpleNamespace(bboxes=box, labels=label),
            metainfo=dict(img_shape=size),
        )
        for box, label, size in zip(boxes, labels, shapes, strict=True)
    ]


def build(channels: int = 4, num_levels: int = 1, **changes: Any) -> Any:
    sizes = dict(channels=channels, num_levels=num_levels)
    return MODELS.build(dict(type='kdtoolbox.FGDLoss', **sizes) | changes)


def learned(loss: Any) -> Any:
    """Move the contexts off their start, where they add nothing."""
    for index, parameter in enumerate(loss.parameters()):
        parameter.data += 0.3 * waves(parameter.shape, 0.7, 0.3, index)
    return loss


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['same_channels', 'align_three_levels'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('fgd', case, dtype)
    teachers, hyper = golden.inputs['teacher'], golden.hyper
    loss = build(8, len(teachers), attention_weight=hyper['gamma_fgd']).to(dtype)
    for level, contexts in enumerate(loss.contexts):
        for context, side in zip(contexts, 'st', strict=True):
            prefix = f'level{level}.channel_add_conv_{side}.'
            stored = {
                f'transform.{name.removeprefix(prefix)}': value
                for name, value in golden.params.items()
                if name.startswith(prefix)
            }
            stored['position'] = golden.params[f'level{level}.conv_mask_{side}.weight']
            for name, parameter in context.named_parameters():
                parameter.data.copy_(stored.pop(name).reshape(parameter.shape))
            assert not stored
    samples = samples_of(golden.inputs['gt_bboxes'])
    students = [level.requires_grad_() for level in golden.inputs['student']]
    total = torch.zeros((), dtype=dtype)
    for level, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        if case == 'align_three_levels':
            prefix = f'level{level}.align.'
            layer = (golden.params[prefix + name] for name in ('weight', 'bias'))
            student = functional.conv2d(student, *layer)
        terms = loss(student, teacher, level, samples, hyper['pad_shape'])
        for name, short in TERMS.items():
            expected = float(golden.outputs[f'{short}_loss_level'][level])
            expected *= loss.weights[name]
            assert terms[name].item() == pytest.approx(expected, TOLERANCES[dtype][0])
        total = total + sum(terms.values())
    assert_golden(total, students, golden)


def test_closed_form_inputs() -> None:
    maps = STUDENT.double(), TEACHER.double()
    terms = build().double()(*maps, 0, samples_of(BOXES), (48, 40))
    expected = [7.7251463e-3, 3.9916954e-3, 5.6373565e-3, 9.9006925e-4]
    found = [term.item() for term in terms.values()]
    assert found == pytest.approx(expected, rel=1e-6)


def naive_masks(boxes: Tensor, shape: tuple, size: tuple) -> tuple[Tensor, Tensor]:
    """The masks of one image, one box and one cell at a time."""
    height, width = size
    foreground = torch.zeros(size, dtype=torch.float64)
    for x1, y1, x2, y2 in boxes.tolist():
        left, right = floor(x1 * width / shape[1]), ceil(x2 * width / shape[1])
        top, bottom = floor(y1 * height / shape[0]), ceil(y2 * height / shape[0])
        weight = 1 / ((bottom - top + 1) * (right - left + 1))
        for y in range(top, min(bottom, height - 1) + 1):
            for x in range(left, min(right, width - 1) + 1):
                foreground[y, x] = max(foreground[y, x], weight)
    background = (foreground == 0).double()
    return foreground, background / max(background.sum(), 1)


def naive(student: Tensor, teacher: Tensor, masks: list, contexts: Any) -> dict:
    """The terms by plain autograd, image by image."""
    total = dict.fromkeys(TERMS, torch.zeros((), dtype=torch.float64))
    for s, t, (foreground, background) in zip(student, teacher, masks, strict=True):
        spatial, channel = (
            [
                x.abs().mean(dims).div(0.5).flatten().softmax(0) * x[0].numel() ** share
                for x in (s, t)
            ]
            for dims, share in ((0, 1), ((1, 2), 0))
        )
        channel = [x * len(s) for x in channel]
        error = (s - t) ** 2 * channel[1][:, None, None] * spatial[1].reshape_as(s[0])
        related = []
        for x, context in ((s, contexts[0]), (t, contexts[1])):
            weight = torch.einsum('c,chw->hw', context.position[0], x)
            weight = weight.flatten().softmax(0).reshape_as(weight)
            average = (x * weight).sum((1, 2))
            related.append(x + context.transform(average)[:, None, None])
        terms = dict(
            foreground=(error * foreground).sum(),
            background=(error * background).sum(),
            attention=sum((a - b).abs().sum() for a, b in (spatial, channel)),
            relation=(related[0] - related[1]).square().sum(),
        )
        total = {name: total[name] + terms[name] / len(student) for name in terms}
    return total


@pytest.mark.parametrize('legacy', [False, True])
def test_naive_loops(legacy: bool) -> None:
    loss = learned(build(legacy_img_shape=legacy)).double()
    # The second image is smaller than the batch.
    samples = samples_of(BOXES, (24, 30))
    shapes = [
        sample.metainfo['img_shape'] if legacy else (48, 40) for sample in samples
    ]
    masks = [naive_masks(b, x, (6, 5)) for b, x in zip(BOXES, shapes, strict=True)]
    results = []
    for compute in (
        lambda s: loss(s, TEACHER.double(), 0, samples, (48, 40)),
        lambda s: {
            name: loss.weights[name] * term
            for name, term in naive(
                s, TEACHER.double(), masks, loss.contexts[0]
            ).items()
        },
    ):
        student = STUDENT.double().requires_grad_()
        terms = compute(student)
        loss.zero_grad()
        sum(terms.values()).backward()
        grads = [p.grad for p in loss.parameters()]
        results.append([*terms.values(), student.grad, *grads])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_the_layer_of_the_positions_starts_kaiming_normal() -> None:
    position = GlobalContext(4096).position.detach()
    assert position.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.1)


def test_both_contexts_learn_and_start_at_zero() -> None:
    loss = build()
    for context in loss.contexts[0]:
        assert not context(STUDENT[:, :, 0, 0]).any()
    learned(loss)
    sum(loss(STUDENT, TEACHER, 0, samples_of(BOXES), (48, 40)).values()).backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())


def test_masks_of_a_covered_and_of_an_empty_image() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]]]).repeat(2, 1, 1)
    exist = torch.tensor([[True, True], [False, False]])
    foreground, background = object_masks(boxes, exist, (3, 3))
    expected = torch.full((3, 3), 1 / 12)
    expected[1, 1] = 1
    torch.testing.assert_close(foreground[0], expected)
    torch.testing.assert_close(background[1], torch.full((3, 3), 1 / 9))
    assert not background[0].any()
    assert not foreground[1].any()


def test_no_boxes_leave_the_background() -> None:
    student = STUDENT.clone().requires_grad_()
    terms = build()(student, TEACHER, 0, samples_of([BOXES[0][:0]] * 2), (48, 40))
    terms['foreground'].backward(retain_graph=True)
    assert terms['foreground'] == 0
    assert not student.grad.any()
    assert terms['background'] > 0


def test_zeros_of_the_student_get_no_step_from_its_magnitude() -> None:
    student = torch.relu(STUDENT).requires_grad_()
    masks = (torch.zeros(2, 6, 5),) * 2
    terms = fgd_terms(student, TEACHER, masks, [GlobalContext(4), GlobalContext(4)])
    terms['attention'].backward()
    assert not student.grad[student == 0].any()
    assert student.grad[student > 0].any()


@pytest.mark.parametrize('moved', [False, True])
def test_contract(moved: bool) -> None:
    loss = learned(build()) if moved else build()
    # Smaller than elsewhere: the numerical gradient takes two losses for each value.
    check_loss(
        loss,
        STUDENT[..., :4, :3],
        TEACHER[..., :4, :3],
        zero_at_equality=not moved,
        level=0,
        data_samples=samples_of(BOXES),
        batch_input_shape=(48, 40),
    )


@pytest.mark.parametrize(
    ('shape', 'level', 'cure'),
    [
        ((2, 4, 6, 5), 1, 'num_levels=1 and got level 1.* set num_levels'),
        ((2, 3, 6, 5), 0, 'channels=4 and got maps of 3; set channels=3'),
    ],
)
def test_another_pyramid_is_refused(shape: tuple, level: int, cure: str) -> None:
    maps = torch.zeros(shape)
    with pytest.raises(ValueError, match=cure):
        build()(maps, maps, level, samples_of(BOXES), (48, 40))
    with pytest.raises(ValueError, match='differ in shape'):
        build()(maps, maps[:1], level, samples_of(BOXES), (48, 40))
