import pytest
import torch
from golden import waves
from torch.nn import functional

from kdtoolbox.losses.features.vitkd import ViTKDLoss, hide_positions
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


def build(**arguments: float) -> ViTKDLoss:
    torch.manual_seed(0)
    loss = ViTKDLoss(channels=4, **arguments)
    torch.nn.init.normal_(loss.token)
    return loss


@pytest.mark.parametrize(('ratio', 'visible'), [(0.5, 15), (0.75, 7), (0.01, 29)])
def test_each_image_hides_the_same_number_of_different_positions(
    ratio: float, visible: int
) -> None:
    torch.manual_seed(0)
    hidden = hide_positions(STUDENT, ratio)
    assert hidden.shape == (2, 1, 6, 5)
    assert hidden.sum((1, 2, 3)).tolist() == [30 - visible] * 2
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden, hide_positions(STUDENT, ratio))


@pytest.mark.parametrize('ratio', [0.5, 0.75])
def test_naive_loops(ratio: float) -> None:
    loss = build(mask_ratio=ratio, loss_weight=2.0).double()
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    torch.manual_seed(1)
    hidden = hide_positions(STUDENT, ratio)
    places = torch.cartesian_prod(*map(torch.arange, (2, 6, 5)))
    cells = [
        loss.token.flatten() if hidden[n, 0, y, x] else reference[n, :, y, x]
        for n, y, x in places
    ]
    filled = torch.stack(cells).reshape(2, 6, 5, 4).permute(0, 3, 1, 2)
    first, last = loss.generator[0], loss.generator[2]
    inner = functional.conv2d(filled, first.weight, first.bias, padding=1)
    generated = functional.conv2d(inner.relu(), last.weight, last.bias, padding=1)
    total = torch.zeros((), dtype=torch.float64)
    for n, y, x in places:
        if hidden[n, 0, y, x]:
            error = generated[n, :, y, x] - TEACHER[n, :, y, x].double()
            total = total + (error**2).sum()
    expected = 2.0 * total / ratio / 2
    torch.manual_seed(1)
    value = loss(student, TEACHER.double())
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)
    # Hidden positions get no gradient.
    assert torch.equal(student.grad.any(1, keepdim=True), ~hidden)


def test_all_parameters_get_a_gradient_and_the_token_starts_at_zero() -> None:
    loss = MODELS.build(dict(type='kdtoolbox.ViTKDLoss', channels=4))
    assert not loss.token.any()
    loss(STUDENT, TEACHER).backward()
    assert all(weight.grad.any() for weight in loss.parameters())


def test_contract() -> None:
    check_loss(build(loss_weight=1.0), STUDENT, TEACHER, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='channels=4, the maps have 3; set channels=3'):
        build()(STUDENT[:, :3], TEACHER[:, :3])
    with pytest.raises(ValueError, match=r'\(2, 3, 6, 5\) differ.*ConvConnector'):
        build()(STUDENT, TEACHER[:, :3])
    for ratio in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=rf'mask_ratio .* got {ratio}'):
            ViTKDLoss(channels=4, mask_ratio=ratio)
