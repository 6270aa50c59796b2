import copy
import math

import pytest
import torch
from golden import waves
from pixels import samples_of

from kdtoolbox.losses.logits.ctkd import CTKDLoss
from kdtoolbox.losses.logits.kd import kd_loss
from kdtoolbox.testing import check_loss

ROWS = waves((6, 5), 0.9, 0.3), 2 * waves((6, 5), 0.7, 0.5, 1.0)
MAPS = waves((2, 4, 3, 2), 0.37, 0.11), 1.3 * waves((2, 4, 3, 2), 0.23, 0.17, 0.4)
TAU = 1 + 20 / (1 + math.exp(-1))


def at(step: int, ramp: int = 8, **arguments: float) -> CTKDLoss:
    """Return a loss in double precision whose next call is this step."""
    loss = CTKDLoss(ramp_iterations=ramp, **arguments).double()
    loss.iterations.fill_(step - 1)
    return loss


@pytest.mark.parametrize('use_sigmoid', [False, True])
@pytest.mark.parametrize('step', [1, 4, 100])
@pytest.mark.parametrize('pair', [ROWS, MAPS], ids=['rows', 'maps'])
def test_equals_kd_at_the_learned_temperature(
    pair: tuple, step: int, use_sigmoid: bool
) -> None:
    student, reference = (pair[0].double().requires_grad_() for _ in range(2))
    loss = at(step, use_sigmoid=use_sigmoid, loss_weight=3.0)
    value = loss(student, pair[1].double())
    kd = kd_loss(reference, pair[1].double(), tau=TAU, use_sigmoid=use_sigmoid)
    expected = 3 * kd
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ('step', 'factor'),
    [(2, -0.5 + math.sqrt(0.125)), (4, -0.5), (8, -1.0), (9, -1.0), (1000, -1.0)],
)
def test_reversed_gradient_follows_the_schedule(step: int, factor: float) -> None:
    """Compare with a difference quotient of KD with respect to theta."""
    student, teacher = (rows.double() for rows in ROWS)
    loss = at(step, loss_weight=2.0)
    loss(student, teacher).backward()
    values = [
        2 * kd_loss(student, teacher, tau=1 + 20 / (1 + math.exp(-theta)))
        for theta in (1 + 1e-4, 1 - 1e-4)
    ]
    slope = (values[0] - values[1]) / 2e-4
    assert abs(slope) > 1e-3
    assert loss.theta.grad.item() == pytest.approx(factor * slope.item(), rel=1e-6)


def test_first_step_hardly_reverses_the_gradient() -> None:
    loss = CTKDLoss(ramp_iterations=10000)
    loss(*ROWS).backward()
    assert -1e-6 < loss.theta.grad < 1e-6


def test_optimizer_step_makes_the_task_harder() -> None:
    loss = at(8)
    before = loss(*(rows.double() for rows in ROWS))
    before.backward()
    torch.optim.SGD(loss.parameters(), lr=0.1).step()
    assert loss(*(rows.double() for rows in ROWS)) > before


def test_steps_are_counted_once_per_iteration_and_only_in_training() -> None:
    loss = CTKDLoss(ramp_iterations=8)
    for level in range(3):
        loss(*ROWS, level=level)
    assert loss.iterations == 1
    loss.eval()(*ROWS)
    assert loss.iterations == 1
    assert loss.iterations.dtype == torch.long


def test_state_dict_restores_step_and_temperature() -> None:
    loss = at(3)
    loss(*ROWS)
    loss.theta.data.fill_(-0.5)
    other = CTKDLoss(ramp_iterations=8)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert other.iterations == 3
    assert other.temperature().item() == pytest.approx(1 + 20 / (1 + math.exp(0.5)))
    assert list(dict(other.named_parameters())) == ['theta']
    # The step counter stays an integer when the model is cast.
    assert other.half().iterations.dtype == torch.long


def test_ignored_pixels_do_not_count() -> None:
    student = MAPS[0].clone().requires_grad_()
    labels = (torch.arange(12) % 4).reshape(2, 3, 2)
    labels[0, 1, :] = 255
    loss = at(8)
    loss(student, MAPS[1], samples_of(labels)).backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, labels != 255)
    loss.zero_grad()
    value = loss(student, MAPS[1], samples_of(torch.full_like(labels, 255)))
    value.backward()
    assert value == 0
    assert loss.theta.grad == 0


@pytest.mark.parametrize('pair', [ROWS, MAPS], ids=['rows', 'maps'])
def test_keeps_the_loss_contract(pair: tuple) -> None:
    check_loss(at(4, loss_weight=3.0), *pair)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='differ in shape'):
        CTKDLoss(ramp_iterations=8)(ROWS[0], ROWS[1][:, :4])
    for ramp in (0, 2.5):
        with pytest.raises(ValueError, match=rf'got {ramp}; .*ramp_iterations=3720'):
            CTKDLoss(ramp_iterations=ramp)
