from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from mmcv.cnn import NonLocal2d
from torch import Tensor, nn

from kdtoolbox.losses.features.non_local import NonLocal
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
# Term -> (name in the stored vectors, weight).
TERMS = dict(
    feature=('feat', 7e-5),
    channel=('channel', 4e-3),
    spatial=('spatial', 4e-3),
    nonlocal_=('nonlocal_', 7e-5),
)
LAYERS = {
    'feature': 'student.adaptation_layers',
    'channel': 'student.channel_wise_adaptation',
    'spatial': 'student.spatial_wise_adaptation',
    'relation': 'student.non_local_adaptation',
    'student': 'student.student_non_local',
    'teacher': 'teacher.teacher_non_local',
}
BLOCK = {
    'query': 'theta.conv',
    'key': 'phi.conv',
    'value': 'g.conv',
    'out': 'conv_out.conv',
    'norm': 'conv_out.bn',
}


def build(channels: int = 4, num_levels: int = 1, **changes: Any) -> Any:
    sizes = dict(channels=channels, num_levels=num_levels)
    return MODELS.build(dict(type='kdtoolbox.FBKDLoss', **sizes) | changes)


def learned(module: Any) -> Any:
    """Change the parameters; at initialisation the blocks are the identity."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * waves(parameter.shape, 0.7, 0.3, index)
    return module


def identity(loss: Any) -> Any:
    """Set every layer of the student to the identity."""
    layers = loss.levels[0]
    for layer in (layers.feature, layers.relation):
        nn.init.dirac_(layer.weight)
    nn.init.eye_(layers.channel.weight)
    nn.init.dirac_(layers.spatial.weight)
    for name in ('feature', 'channel', 'spatial', 'relation'):
        nn.init.zeros_(layers[name].bias)
    return loss


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('fbkd', 'basic', dtype)
    loss = build(golden.hyper['channels']).to(dtype)
    stored = dict(golden.params)
    for name, parameter in loss.levels[0].named_parameters():
        layer, _, rest = name.partition('.')
        if layer in ('student', 'teacher'):
            part, _, rest = rest.partition('.')
            rest = f'{BLOCK[part]}.{rest}'
        parameter.data.copy_(stored.pop(f'{LAYERS[layer]}.{rest}'))
    assert not stored
    student = golden.inputs['student'].requires_grad_()
    terms = loss(student, golden.inputs['teacher'], 0)
    for name, (short, _) in TERMS.items():
        expected = float(golden.outputs[short])
        found = terms[name.rstrip('_')].item()
        assert found == pytest.approx(expected, rel=TOLERANCES[dtype][0])
    assert_golden(sum(terms.values()), [student], golden)


def test_non_local_block_equals_the_block_of_mmcv() -> None:
    block = learned(NonLocal(4).double())
    other = NonLocal2d(4, mode='dot_product', norm_cfg=dict(type='BN')).double()
    for name, path in BLOCK.items():
        for key, value in getattr(block, name).named_parameters():
            other.get_parameter(f'{path}.{key}').data.copy_(value.data)
    results = []
    for module in (block, other):
        maps = STUDENT.double().requires_grad_()
        output = module(maps)
        (output * TEACHER).sum().backward()
        paths = BLOCK if module is block else BLOCK.values()
        weights = [module.get_submodule(path).weight.grad for path in paths]
        results.append([output.detach(), maps.grad, *weights])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # The initialisation is the same, too.
    for name, path in BLOCK.items():
        start = getattr(NonLocal(512), name).weight.std()
        expected = NonLocal2d(512, mode='dot_product', norm_cfg=dict(type='BN'))
        scale = expected.get_submodule(path).weight.std()
        torch.testing.assert_close(start, scale, rtol=0.02, atol=0)


def naive(layers: Any, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Compute the squared norms without weights; uses the non-local blocks."""
    total = dict.fromkeys(TERMS, torch.zeros((), dtype=torch.float64))
    mapped = layers.feature(student)
    goal, related = layers.teacher(teacher), layers.relation(layers.student(student))
    for n, (s, t) in enumerate(zip(student, teacher, strict=True)):
        mask = 0
        for x in (s.detach(), t):
            energy = (x.abs().sum(0) / len(x) / 0.5).exp()
            mask = mask + energy / energy.sum() * energy.numel() / 2
        pooled = layers.channel(torch.stack([x.sum() / x.numel() for x in s]))
        flat = layers.spatial(s.sum(0)[None, None] / len(s))[0, 0]
        terms = dict(feature=0, channel=0, spatial=0, nonlocal_=0)
        for c in range(len(s)):
            error = (t[c] - mapped[n, c]) ** 2
            terms['feature'] = terms['feature'] + (mask * error).sum()
            terms['channel'] = terms['channel'] + (t[c].mean() - pooled[c]) ** 2
            terms['nonlocal_'] += ((goal[n, c] - related[n, c]) ** 2).sum()
        terms['spatial'] = ((t.sum(0) / len(t) - flat) ** 2).sum()
        total = {name: total[name] + terms[name] for name in total}
    return total


def test_naive_loops() -> None:
    loss = learned(build(loss_weight=2.0)).double()
    layers, teacher = loss.levels[0], TEACHER.double()
    results = []
    for plain in (False, True):
        student = STUDENT.double().requires_grad_()
        if plain:
            squares = naive(layers, student, teacher)
            terms = [2 * TERMS[name][1] * x.sqrt() for name, x in squares.items()]
        else:
            terms = list(loss(student, teacher, 0).values())
        loss.zero_grad()
        sum(terms).backward()
        results.append([*terms, student.grad, *(p.grad for p in loss.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-14)


def test_equal_maps_give_zero_loss_and_zero_gradient() -> None:
    loss = identity(build())
    student = STUDENT.clone().requires_grad_()
    terms = loss(student, STUDENT.clone(), 0)
    sum(terms.values()).backward()
    assert not any(terms.values())
    assert not student.grad.any()
    assert not any(p.grad.any() for p in loss.parameters())


def test_every_layer_gets_a_gradient_after_the_first_step() -> None:
    loss = learned(build())
    sum(loss(STUDENT, TEACHER, 0).values()).backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())


def test_every_layer_gets_a_gradient_from_a_single_value_per_channel() -> None:
    loss = learned(build())
    cell = STUDENT[:1, :, :1, :1], TEACHER[:1, :, :1, :1]
    sum(loss(*cell, 0).values()).backward()
    # DDP waits for the gradient of every parameter.
    assert all(parameter.grad is not None for parameter in loss.parameters())
    block = loss.levels[0].student
    torch.testing.assert_close(block(cell[0]), cell[0] + block.norm.bias[:, None, None])


def test_loss_of_a_large_map_is_accurate() -> None:
    loss = identity(build(channels=4))
    student, teacher = torch.full((1, 4, 1024, 1024), 0.1), torch.zeros(())
    with torch.no_grad():
        value = loss(student, teacher.expand_as(student), 0)['nonlocal']
    expected = 7e-5 * 0.1 * (4 * 1024 * 1024) ** 0.5
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('moved', [False, True])
def test_contract(moved: bool) -> None:
    loss = learned(build()) if moved else identity(build())
    maps = STUDENT[..., :3, :2], TEACHER[..., :3, :2]
    check_loss(loss, *maps, zero_at_equality=not moved, level=0)


@pytest.mark.parametrize(
    ('shape', 'level', 'cure'),
    [
        ((2, 4, 6, 5), 1, 'num_levels=1, level 1 has 4 channels'),
        ((2, 3, 6, 5), 0, 'channels=4 .* set channels=3'),
    ],
)
def test_wrong_levels_or_channels_raise(shape: tuple, level: int, cure: str) -> None:
    maps = torch.zeros(shape)
    with pytest.raises(ValueError, match=cure):
        build()(maps, maps, level)
    with pytest.raises(ValueError, match='differ in shape'):
        build()(maps, maps[:1], level)
