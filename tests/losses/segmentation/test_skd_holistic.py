import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor, nn

from kdtoolbox.losses.segmentation.logit_critic import LogitCritic, SelfAttention
from kdtoolbox.losses.segmentation.skd_holistic import (
    SKDHolisticLoss,
    adversarial_terms,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
EVERYWHERE = torch.ones(2, 6, 5, dtype=torch.bool)


def build(**arguments: Any) -> Any:
    """Return a loss whose critic gives scores other than 0, unlike a new one."""
    torch.manual_seed(0)
    config = dict(type='kdtoolbox.SKDHolisticLoss', num_classes=4, **arguments)
    loss = MODELS.build(config)
    score, attention = loss.critic.score, loss.critic.layers[-1]
    with torch.no_grad():
        score.weight.copy_(waves(score.weight.shape, 0.7, 0.3))
        attention.factor.fill_(0.5)
    return loss


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_each_term_gives_a_gradient_to_one_side_only() -> None:
    loss = build()
    # Large enough for more than one position in the attention of the critic.
    student, teacher = (
        maps.repeat(1, 1, 2, 2).requires_grad_() for maps in (STUDENT, TEACHER)
    )
    terms = loss(student, teacher)
    assert list(terms) == ['generator', 'critic']
    terms['generator'].backward()
    assert student.grad.any()
    assert not gradients(loss)
    student.grad = None
    terms['critic'].backward()
    assert student.grad is None
    assert len(gradients(loss)) == len(list(loss.parameters())) == 11
    assert all(gradient.any() for gradient in gradients(loss))
    assert teacher.grad is None


def test_matches_naive_loops() -> None:
    loss = build(generator_weight=0.3, critic_weight=0.7, penalty_weight=5.0).double()
    critic = loss.eval().critic
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    torch.manual_seed(1)
    terms = loss(student, teacher)
    torch.stack(list(terms.values())).sum().backward()
    actual_gradients = [student.grad, *gradients(critic)]
    loss.zero_grad()

    torch.manual_seed(1)
    shares = torch.rand(2, 1, 1, 1, dtype=torch.float64)
    reference = STUDENT.double().requires_grad_()
    generator, compared = [], []
    for s, t, share in zip(reference, teacher, shares, strict=True):
        generator.append(-0.3 * critic(s[None]).sum() / 2)
        s = s.detach()
        between = share * s + (1 - share) * t
        slopes = torch.autograd.functional.jacobian(
            lambda maps: critic(maps[None]).sum(), between, create_graph=True
        )
        steepness = slopes.square().sum().sqrt()
        difference = critic(s[None]).sum() - critic(t[None]).sum()
        compared.append(0.7 * (difference + 5 * (steepness - 1) ** 2) / 2)
    torch.testing.assert_close(terms['generator'], sum(generator))
    torch.testing.assert_close(terms['critic'], sum(compared))
    [expected] = torch.autograd.grad(sum(generator), reference)
    sum(compared).backward()
    pairs = zip(actual_gradients, [expected, *gradients(critic)], strict=True)
    for actual, gradient in pairs:
        torch.testing.assert_close(actual, gradient, rtol=1e-8, atol=1e-12)


def test_attention_matches_naive_loops() -> None:
    attention = SelfAttention(16).eval()
    attention.factor.data.fill_(0.5)
    maps = waves((1, 16, 2, 3), 0.3, 0.2)
    query, key, value = (
        project(maps)[0].flatten(1).T
        for project in (attention.query, attention.key, attention.value)
    )
    cells = []
    for position in range(6):
        weights = torch.stack([(query[position] * k).sum() for k in key]).softmax(0)
        found = sum(w * v for w, v in zip(weights, value, strict=True))
        cells.append(maps[0].flatten(1)[:, position] + 0.5 * found)
    expected = torch.stack(cells, 1).reshape(1, 16, 2, 3)
    torch.testing.assert_close(attention(maps), expected)


def test_training_the_critic_separates_student_and_teacher() -> None:
    torch.manual_seed(0)
    loss = SKDHolisticLoss(num_classes=4, critic_weight=1.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.02)
    separations = []
    for _ in range(12):
        optimizer.zero_grad()
        loss(STUDENT, TEACHER)['critic'].backward()
        optimizer.step()
        difference = loss.critic(TEACHER) - loss.critic(STUDENT)
        separations.append(difference.mean().item())
    assert separations[-1] > 0.1
    assert separations[-1] > separations[0] > 0


def test_step_of_the_student_raises_its_score() -> None:
    loss = build().eval()
    student = STUDENT.clone().requires_grad_()
    loss(student, TEACHER)['generator'].backward()
    before, after = (
        loss.critic(maps).mean() for maps in (student, student - 0.1 * student.grad)
    )
    assert after > before


def test_new_critic_gives_the_student_no_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    terms = SKDHolisticLoss(num_classes=4)(student, TEACHER)
    terms['generator'].backward()
    assert terms['generator'] == 0
    assert not student.grad.any()
    assert terms['critic'].item() == pytest.approx(0.1 * 10)


def test_spectral_norm_is_only_estimated_in_training() -> None:
    loss = build()
    before = copy.deepcopy(loss.state_dict())
    for _ in range(30):
        loss(STUDENT, TEACHER)
    moved = {k for k, v in loss.state_dict().items() if not torch.equal(v, before[k])}
    assert len(moved) == 12
    assert all(name.rpartition('.')[2] in ('_u', '_v') for name in moved)
    for module in loss.critic.modules():
        if nn.utils.parametrize.is_parametrized(module):
            norm = torch.linalg.matrix_norm(module.weight.flatten(1), 2)
            assert norm.item() == pytest.approx(1.0, rel=0.05)
    # The same holds for a resumed run.
    resumed = build().eval()
    resumed.load_state_dict(loss.eval().state_dict())
    before = copy.deepcopy(loss.state_dict())
    values = []
    for critic in (loss, loss, resumed):
        torch.manual_seed(0)
        values.append(sum(critic(STUDENT, TEACHER).values()))
    assert values[0] == values[1] == values[2]
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_ignored_pixels_do_not_count() -> None:
    labels = torch.zeros(2, 6, 5, dtype=torch.long)
    labels[0, :3], labels[1] = 255, 255
    loss = build().eval()
    found = []
    for maps in (STUDENT, STUDENT + 5 * (labels == 255)[:, None]):
        torch.manual_seed(0)
        student = maps.clone().requires_grad_()
        terms = loss(student, TEACHER, samples_of(labels))
        terms['generator'].backward()
        assert torch.equal(student.grad.abs().sum(1) > 0, labels != 255)
        found.append(torch.stack(list(terms.values())))
    assert torch.equal(*found)
    # The second image is ignored entirely and left out of the means.
    torch.manual_seed(0)
    alone = loss(STUDENT[:1], TEACHER[:1], samples_of(labels[:1]))
    torch.testing.assert_close(torch.stack(list(alone.values())), found[0])


def test_batch_of_ignored_pixels_gives_zero() -> None:
    loss, student = build(), STUDENT.clone().requires_grad_()
    terms = loss(student, TEACHER, samples_of(torch.full((2, 6, 5), 255)))
    total = sum(terms.values())
    total.backward()
    assert total == 0
    assert not student.grad.any()
    assert not any(gradient.any() for gradient in gradients(loss))


def test_penalty_is_computed_under_no_grad() -> None:
    critic = build().eval().critic
    with torch.no_grad():
        terms = adversarial_terms(critic, STUDENT, TEACHER, EVERYWHERE)
    assert terms['penalty'] > 0


class Generator(nn.Module):
    """The term of the student plus a constant, because a score may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = build()
        self.loss_weight = 1.0

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list) -> Tensor:
        self.loss.loss_weight = self.loss_weight
        term = self.loss(student, teacher, data_samples)['generator']
        return term + 10 * self.loss_weight


def test_keeps_the_loss_contract() -> None:
    labels = (torch.arange(60) % 4).reshape(2, 6, 5)
    labels[0, 1, :3] = 255
    check_loss(
        Generator(),
        STUDENT,
        TEACHER,
        zero_at_equality=False,
        # Slow, and already compared with naive loops above.
        gradcheck=False,
        data_samples=samples_of(labels),
    )


def test_one_optimizer_trains_both_and_the_critic_is_not_exported(
    toy: SimpleNamespace,
) -> None:
    sides = dict(logits='decode_head.conv_seg')
    loss = dict(type='SKDHolisticLoss', num_classes=4)
    loss |= dict(student='student.logits', teacher='teacher.logits')
    model = toy.build_distiller(
        toy.segmentor(),
        recorders=dict(student=sides, teacher=sides),
        losses=dict(loss_adversarial=loss),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    start = copy.deepcopy(model.state_dict())
    for _ in range(2):
        data = model.data_preprocessor(toy.seg_data(), training=True)
        total, logged = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert {'loss_adversarial.generator', 'loss_adversarial.critic'} <= set(logged)
    assert logged['loss_adversarial.generator'] != 0
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, start[k])}
    critic = 'losses.loss_adversarial.critic.'
    assert f'{critic}score.weight' in moved
    assert f'{critic}layers.0.parametrizations.weight.original' in moved
    assert 'student.decode_head.conv_seg.weight' in moved
    assert not any('critic' in key for key in model.student.state_dict())


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='num_classes=3, .* have 4 classes; set .*=4'):
        SKDHolisticLoss(num_classes=3)(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r'maps \(N, K, H, W\), got'):
        SKDHolisticLoss(num_classes=4)(STUDENT[..., 0, 0], TEACHER[..., 0, 0])
    assert LogitCritic(4)(STUDENT[:, :, :1, :1]).shape == (2,)
