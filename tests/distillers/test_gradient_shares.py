import math
from types import SimpleNamespace

import pytest
import torch

from kdtoolbox.distillers.gradient_shares import (
    TASK,
    gradients_at,
    norm_of,
    share,
    summed_losses,
)
from kdtoolbox.distillers.observing import Step

Toy = SimpleNamespace
FPN = 'student.fpn'


def step_of(model: SimpleNamespace, data: dict) -> Step:
    """Return the step of one forward, with its graph."""
    steps: list[Step] = []
    model.observers.append(steps.append)
    model(**model.data_preprocessor(data, training=True), mode='loss')
    model.observers.clear()
    return steps[0]


@pytest.fixture(scope='module')
def step(toy: Toy) -> Step:
    """A step with a loss of several terms on a connector, and one on the records."""
    torch.manual_seed(0)
    aligned = dict(type='ConvConnector', input=FPN, in_channels=8, out_channels=16)
    fgd = dict(type='FGDLoss', student='aligned', teacher='teacher.fpn', channels=16)
    pkd = dict(type='PKDLoss', student='aligned', teacher='teacher.fpn')
    model = toy.build_distiller(
        toy.gfl(),
        toy.gfl(base=16, out=16),
        connectors=dict(aligned=aligned),
        losses=dict(loss_fgd=dict(fgd, num_levels=3), loss_pkd=pkd),
    )
    return step_of(model, toy.det_data())


def test_gradients_of_all_losses_add_up_to_that_of_their_sum(step: Step) -> None:
    names = [TASK, 'loss_fgd', 'loss_pkd']
    found = gradients_at(step, [FPN, 'aligned'], names)
    total = sum(summed_losses(step).values())
    for wire, reaching in ((FPN, names), ('aligned', names[1:])):
        whole = torch.autograd.grad(total, step.wires[wire], retain_graph=True)
        for level, expected in enumerate(whole):
            parts = [found[name][wire][level] for name in reaching]
            torch.testing.assert_close(sum(parts), expected, rtol=1e-4, atol=1e-7)
            assert all(part.any() for part in parts)


def test_terms_are_summed_as_training_sums_them(toy: Toy, step: Step) -> None:
    sums = summed_losses(step)
    terms = [value for name, value in step.losses.items() if 'loss_fgd.' in name]
    assert len(terms) > 1
    assert sums['loss_fgd'].item() == pytest.approx(sum(terms).item())
    model = toy.build(toy.gfl())
    total, _ = model.parse_losses(dict(step.task_losses))
    assert sums[TASK].item() == pytest.approx(total.item())


def test_a_loss_that_does_not_read_a_wire_has_no_gradient_there(step: Step) -> None:
    found = gradients_at(step, ['aligned', 'teacher.fpn'], [TASK, 'loss_pkd'])
    assert found[TASK]['aligned'] == [None] * 3
    assert found['loss_pkd']['teacher.fpn'] == [None] * 3
    assert norm_of(found[TASK]['aligned']) is None


def test_no_parameter_receives_a_gradient_and_the_step_can_go_on(toy: Toy) -> None:
    model = toy.build_distiller(toy.gfl())
    seen = step_of(model, toy.det_data())
    gradients_at(seen, [FPN], [TASK, 'loss_cwd'])
    assert all(parameter.grad is None for parameter in model.parameters())
    sum(summed_losses(seen).values()).backward()
    assert model.student.neck.fpn_convs[0].conv.weight.grad.any()


def test_a_constant_loss_has_no_gradient() -> None:
    maps = torch.ones(1, 2, 3, 3, requires_grad=True)
    step = Step(maps, [], {FPN: [maps]}, {}, dict(loss_pkd=torch.zeros(())))
    assert gradients_at(step, [FPN], ['loss_pkd']) == {'loss_pkd': {FPN: [None]}}


def test_scale_saves_small_float16_gradients() -> None:
    maps = torch.ones(1, 2, 3, 3, dtype=torch.float16, requires_grad=True)
    tiny = 1e-9
    losses = dict(loss_pkd=(maps.float() * tiny).sum())
    step = Step(maps, [], {FPN: [maps]}, {}, losses)
    lost = gradients_at(step, [FPN], ['loss_pkd'])['loss_pkd'][FPN]
    kept = gradients_at(step, [FPN], ['loss_pkd'], scale=2.0**16)['loss_pkd'][FPN]
    assert norm_of(lost) == 0
    assert float(norm_of(kept)) == pytest.approx(tiny * math.sqrt(18), rel=1e-2)


def test_unknown_names_are_refused(step: Step) -> None:
    with pytest.raises(KeyError, match=r"no wire 'student.neck'.*'student.fpn'"):
        gradients_at(step, ['student.neck'], [TASK])
    with pytest.raises(KeyError, match=r"no loss 'loss_cwd'.*'loss_fgd', 'loss_pkd'"):
        gradients_at(step, [FPN], ['loss_cwd'])


@pytest.mark.parametrize(
    ('own', 'task', 'expected'),
    [
        (0.0, 2.0, 0.0),
        (2.0, 0.0, 1.0),
        (3.0, 1.0, 0.75),
        (0.0, 0.0, None),
        (-1.0, 2.0, None),
        (math.inf, 1.0, None),
        (math.nan, 1.0, None),
        (1.0, math.nan, None),
    ],
)
def test_share(own: float, task: float, expected: float | None) -> None:
    assert share(own, task) == expected
