import pytest
import torch
from golden import load_golden, report_parity, waves
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.features.diffkd import DiffKDLoss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 8, 2, 3), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 8, 2, 3), 0.23, 0.17, 0.4)
NAMES = {
    'model.time_embedding.': 'denoiser.times.',
    'model.pred.': 'denoiser.blocks.',
    'noise_adapter.feat.0.': 'adapter.block.',
    'noise_adapter.pred.': 'adapter.scores.',
    'proj.': 'projection.',
}


def build(**arguments: float) -> DiffKDLoss:
    torch.manual_seed(0)
    return DiffKDLoss(channels=8, **arguments)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('diffkd', 'no_ae', dtype)
    inputs, expected, params = golden.inputs, golden.outputs, golden.params
    weights = {
        new + name.removeprefix(old): value
        for name, value in params.items()
        for old, new in NAMES.items()
        if name.startswith(old)
    }
    # The reference has more rows than time steps.
    weights['denoiser.times.weight'] = weights['denoiser.times.weight'][:1000]
    loss = build().to(dtype)
    loss.load_state_dict(weights)
    student = inputs['student'].requires_grad_()
    aligned = functional.conv2d(student, params['trans.weight'], params['trans.bias'])
    refined = loss.refine(aligned, inputs['noise_init'])
    noise = loss.noise_error(
        inputs['teacher'], inputs['noise_ddim'], inputs['timesteps']
    )
    feature = functional.mse_loss(refined, inputs['teacher'])
    total = feature + noise
    total.backward()
    # The reference computes the square roots of its schedule in float32.
    rtol = 1e-6 if dtype == torch.float64 else 2e-5
    for value, name in ((refined, 'refined'), (noise, 'ddim'), (feature, 'kd')):
        close = dict(rtol=rtol, atol=rtol * float(expected[name].abs().max()))
        torch.testing.assert_close(value, expected[name], **close)
    grad = golden.grads['student']
    atol = rtol * float(grad.abs().max())
    torch.testing.assert_close(student.grad, grad, rtol=0, atol=atol)
    if dtype == torch.float64:
        report_parity(total, [student], [grad], golden)
    kept = expected['alphas_cumprod']
    torch.testing.assert_close(loss.kept, kept, rtol=0, atol=1e-6)


def naive_layers(layers: nn.Sequential, maps: Tensor) -> Tensor:
    """Apply convolutions, batch norms, ReLUs and bottlenecks by their formulas."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            padding = layer.weight.shape[2] // 2
            maps = functional.conv2d(maps, layer.weight, layer.bias, padding=padding)
        elif isinstance(layer, nn.ReLU):
            maps = maps * (maps > 0)
        elif isinstance(layer, nn.BatchNorm2d):
            mean = maps.mean((0, 2, 3), keepdim=True)
            square = ((maps - mean) ** 2).mean((0, 2, 3), keepdim=True)
            scale, bias = (x[:, None, None] for x in (layer.weight, layer.bias))
            maps = (maps - mean) / (square + 1e-5) ** 0.5 * scale + bias
        else:
            maps = maps + naive_layers(layer.block, maps)
    return maps


def naive_denoiser(loss: DiffKDLoss, maps: Tensor, times: list[int]) -> Tensor:
    embedded = [
        m + loss.denoiser.times.weight[t].reshape(-1, 1, 1)
        for m, t in zip(maps, times, strict=True)
    ]
    return naive_layers(loss.denoiser.blocks, torch.stack(embedded))


def naive(loss: DiffKDLoss, student: Tensor, times: list[int]) -> Tensor:
    """Denoise at these decreasing times, which end at 0, and project."""
    torch.manual_seed(1)
    noise = torch.randn_like(student)
    pooled = (student + naive_layers(loss.adapter.block.block, student)).mean((2, 3))
    mixed = []
    for maps, eps, scores in zip(
        student, noise, loss.adapter.scores(pooled), strict=True
    ):
        share = scores[0].exp() / scores.exp().sum()
        mixed.append(share * maps + (1 - share) * eps)
    maps, kept = torch.stack(mixed), [*loss.kept.tolist()]
    for time, before in zip(times, [*times[1:], None], strict=True):
        predicted = naive_denoiser(loss, maps, [time, time])
        clean = (maps - (1 - kept[time]) ** 0.5 * predicted) / kept[time] ** 0.5
        last = 1.0 if before is None else kept[before]
        maps = last**0.5 * clean + (1 - last) ** 0.5 * predicted
    return naive_layers(loss.projection, maps)


@pytest.mark.parametrize(
    ('steps', 'times'), [(5, [400, 300, 200, 100, 0]), (2, [250, 0])]
)
def test_naive_loops(steps: int, times: list[int]) -> None:
    loss = build(steps=steps, noise_weight=3.0, loss_weight=2.0).double()
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    teacher = TEACHER.double()
    refined = naive(loss, reference, times)
    drawn = torch.randint(1000, (2,))
    noise = torch.randn_like(teacher)
    kept = [loss.kept[time] for time in drawn]
    noisy = torch.stack(
        [
            k**0.5 * t + (1 - k) ** 0.5 * e
            for k, t, e in zip(kept, teacher, noise, strict=True)
        ]
    )
    predicted = naive_denoiser(loss, noisy, drawn.tolist())
    expected = dict(
        feature=2 * ((refined - teacher) ** 2).mean(),
        noise=6 * ((predicted - noise) ** 2).mean(),
    )
    torch.manual_seed(1)
    values = loss(student, teacher)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=0)
    values['feature'].backward()
    expected['feature'].backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-7, atol=1e-12)


def test_all_parameters_get_a_gradient_and_the_noise_term_none_for_the_student() -> (
    None
):
    loss = MODELS.build(dict(type='kdtoolbox.DiffKDLoss', channels=8))
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    values = loss(student, teacher.requires_grad_())
    values['noise'].backward(retain_graph=True)
    assert student.grad is None
    values['feature'].backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert all(weight.grad is not None for weight in loss.parameters())


def test_noise_schedule_is_not_in_the_state_dict() -> None:
    assert 'kept' not in build().state_dict()


def test_contract() -> None:
    maps = STUDENT[..., :2], TEACHER[..., :2]
    check_loss(build(steps=2), *maps, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='channels=8, the maps have 4; set channels=4'):
        build()(STUDENT[:, :4], TEACHER[:, :4])
    with pytest.raises(ValueError, match=r'\(2, 4, 2, 3\) differ.*ConvConnector'):
        build()(STUDENT, TEACHER[:, :4])
    for steps in (0, 501):
        with pytest.raises(ValueError, match=f'from 1 to 500, got {steps}'):
            build(steps=steps)
