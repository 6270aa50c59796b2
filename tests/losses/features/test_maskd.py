from pathlib import Path
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.features.maskd import masked_error
from kdtoolbox.losses.features.receptive_tokens import dice_similarity, token_masks
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


def build(channels: int = 4, num_levels: int = 1, **changes: Any) -> Any:
    """Build a loss whose tokens give distinct masks, unlike at initialisation."""
    arguments = dict(channels=channels, num_levels=num_levels, num_tokens=3)
    arguments |= dict(allow_random=True) | changes
    loss = MODELS.build(dict(type='kdtoolbox.MasKDLoss', **arguments))
    for index, parameter in enumerate(loss.parameters()):
        parameter.copy_(waves(parameter.shape, 0.7, 0.3, index))
    return loss


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['det_weighted_two_levels', 'seg'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('maskd', case, dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    hyper, weighted = golden.hyper, case != 'seg'
    loss = build(
        hyper['channels'][0],
        len(students),
        num_tokens=hyper['num_tokens'],
        weighted=weighted,
        eps=0.0 if weighted else 1e-5,
        loss_weight=1.0 if weighted else 0.5,
        legacy_squared_mask=True,
    ).to(dtype)
    names = [f'mask_modules.{i}.' for i in range(2)] if weighted else ['mask_module.']
    for level, name in enumerate(names):
        loss.tokens.vectors[level] = golden.params[f'{name}mask_token']
        if weighted:
            parts = loss.tokens.convolutions[level], loss.tokens.projections[level]
            for index, part in zip((0, 2), parts, strict=True):
                part.bias.copy_(golden.params[f'{name}prob.{index}.bias'])
                weight = golden.params[f'{name}prob.{index}.weight']
                part.weight.copy_(weight.reshape(part.weight.shape))
    pairs = zip(students, golden.inputs['teacher'], strict=True)
    total = sum(loss(*pair, level) for level, pair in enumerate(pairs))
    assert_golden(total, students, golden)


def naive(loss: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the loss of one level per image, mask and channel."""
    total, tokens = torch.zeros((), dtype=torch.float64), loss.tokens
    [convolution], [projection] = tokens.convolutions, tokens.projections
    for s, t in zip(student, teacher, strict=True):
        average = functional.conv2d(
            t[None], convolution.weight, convolution.bias, padding=1
        ).mean((2, 3))
        for vector, p in zip(
            tokens.vectors[0], projection(average)[0].softmax(0), strict=True
        ):
            mask = sum(v * x for v, x in zip(vector, t, strict=True)).sigmoid()
            factor = mask**2 if loss.legacy_squared_mask else mask
            for a, b in zip(s, t, strict=True):
                error = (factor * (a - b) ** 2).sum() / (mask.sum() + loss.eps)
                total = total + p * error / (len(s) * len(student))
    return loss.loss_weight * total


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('size', [(6, 5), (1, 1), (1, 5), (2, 1)])
def test_naive_loops(size: tuple[int, int], legacy: bool) -> None:
    loss = build(legacy_squared_mask=legacy, loss_weight=7.0).double()
    teacher = TEACHER[:, :, : size[0], : size[1]].double()
    found = []
    for compute in (lambda s: loss(s, teacher, 0), lambda s: naive(loss, s, teacher)):
        student = STUDENT[:, :, : size[0], : size[1]].double().requires_grad_()
        value = compute(student)
        value.backward()
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('weighted', [False, True])
def test_contract(weighted: bool) -> None:
    maps = STUDENT[..., :4, :3], TEACHER[..., :4, :3]
    check_loss(build(weighted=weighted), *maps, level=0)


def test_masks_of_ones_give_the_mean_squared_error() -> None:
    ones, weights = torch.ones(2, 3, 6, 5), torch.tensor([[0.2, 0.5, 0.3]] * 2)
    expected = functional.mse_loss(STUDENT, TEACHER)
    for legacy in (False, True):
        found = masked_error(STUDENT, TEACHER, ones, weights, 0.0, legacy)
        torch.testing.assert_close(found, expected)


def test_masks_of_zeros_give_zero_loss_and_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    masks = token_masks(torch.full((1, 4), -1e4), TEACHER.abs())
    value = masked_error(student, TEACHER, masks, torch.ones(2, 1))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_dice_similarity_is_the_mean_over_pairs_of_masks() -> None:
    masks = waves((2, 3, 6, 5), 0.7, 0.3).double().sigmoid()
    pairs = [
        2 * (image[k] * image[m]).sum() / (image[k].square() + image[m].square()).sum()
        for image in masks
        for k in range(3)
        for m in range(3)
        if k != m
    ]
    torch.testing.assert_close(dice_similarity(masks), torch.stack(pairs).mean())
    assert dice_similarity(masks[:, :1]) == 0


def test_student_masks_are_used_after_the_warmup_also_in_a_resumed_run() -> None:
    loss = build(num_levels=2, student_mask_warmup=2)
    alone = build(num_levels=2)(STUDENT, TEACHER, 0)
    loss.eval()(STUDENT, TEACHER, 0)
    loss.train()
    assert [loss(STUDENT, TEACHER, 0) == alone for _ in range(2)] == [True, True]
    resumed = build(num_levels=2, student_mask_warmup=2)
    resumed.load_state_dict(loss.state_dict())
    vectors = resumed.tokens.vectors[0]
    masks = token_masks(vectors, TEACHER) * token_masks(vectors, STUDENT)
    _, weights = resumed.tokens(TEACHER, 0)
    expected = masked_error(STUDENT, TEACHER, masks, weights)
    assert expected != alone
    student = STUDENT.clone().requires_grad_()
    value = resumed(student, TEACHER, 0)
    torch.testing.assert_close(value, expected)
    # The student's mask receives no gradient.
    value.backward()
    reference = STUDENT.clone().requires_grad_()
    masked_error(reference, TEACHER, masks, weights).backward()
    torch.testing.assert_close(student.grad, reference.grad)
    # Each level has its own count of calls.
    assert resumed.calls.tolist() == [3, 0]


def test_tokens_are_loaded_from_a_checkpoint_and_frozen(tmp_path: Path) -> None:
    trained, path = build(num_levels=2), tmp_path / 'tokens.pth'
    torch.save(dict(state_dict=trained.state_dict(), meta={}), path)
    arguments = dict(channels=4, num_levels=2, num_tokens=3, tokens=str(path))
    loss = MODELS.build(dict(type='kdtoolbox.MasKDLoss', **arguments))
    for name, value in trained.state_dict().items():
        assert torch.equal(loss.state_dict()[name], value)
    loss(STUDENT.clone().requires_grad_(), TEACHER, 1).backward()
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        (dict(num_tokens=2), r'3 misshapen'),
        (dict(weighted=False), r'4 unexpected \(convolutions.0: 2'),
        (dict(num_levels=2), r'1 misshapen \(vectors'),
    ],
)
def test_tokens_of_other_shapes_raise(
    tmp_path: Path, changes: dict, fault: str
) -> None:
    path = tmp_path / 'tokens.pth'
    torch.save(build().state_dict(), path)
    message = rf"(?s)tokens: .*tokens\.pth' does not.*{fault}.*set channels, num_levels"
    with pytest.raises(ValueError, match=message):
        build(tokens=str(path), allow_random=False, **changes)


def test_missing_tokens_raise() -> None:
    message = r'tokens=None.*maskd_tokens_.*set `allow_random=True`'
    with pytest.raises(ValueError, match=message):
        build(allow_random=False)
    with pytest.raises(ValueError, match='tokens: .*no such file; train tokens on'):
        build(tokens='missing.pth')


@pytest.mark.parametrize(
    ('channels', 'level', 'cure'),
    [(4, 1, 'num_levels=1, got level 1'), (3, 0, 'set channels=3')],
)
def test_wrong_levels_or_channels_raise(channels: int, level: int, cure: str) -> None:
    maps = torch.zeros(2, channels, 6, 5)
    with pytest.raises(ValueError, match=cure):
        build()(maps, maps, level)
    with pytest.raises(ValueError, match='differ in shape'):
        build()(maps, maps[:1], level)
