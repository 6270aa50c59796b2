import copy
from typing import Any

import pytest
import torch
from golden import waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.relations import queue_relation
from kdtoolbox.losses.relations.queue_relation import queue_divergence
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((3, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((3, 4, 5, 4), 0.23, 0.17, 0.4)


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    arguments = dict(channels=4, slots=7) | changes
    return MODELS.build(dict(type='kdtoolbox.QueueRelationLoss', **arguments))


def embeddings(maps: Tensor) -> Tensor:
    return functional.normalize(maps.mean((2, 3)), dim=1)


def naive(student: Tensor, teacher: Tensor, keys: Tensor, tau: float) -> Tensor:
    """Loop over images and their keys: the queue, and the teacher's own embedding."""
    terms = []
    for s, t in zip(embeddings(student), embeddings(teacher), strict=True):
        own = [*keys, t]
        q, p = (torch.stack([x @ k / tau for k in own]).softmax(0) for x in (s, t))
        terms.append((p * (p / q).log()).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize('tau', [0.07, 1.0])
def test_matches_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    loss = build(tau=tau)
    keys = loss.queues[0].keys[0].double()
    expected = naive(reference, teacher, keys, tau)
    value = loss(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_earlier_images_are_compared_before_they_are_overwritten() -> None:
    loss, teachers = build().double(), waves((4, 3, 4, 2, 2), 0.29, 0.13).double()
    queue = [*loss.queues[0].keys[0].clone()]
    for step, teacher in enumerate(teachers):
        value = loss(STUDENT.double(), teacher)
        torch.testing.assert_close(
            value, naive(STUDENT.double(), teacher, torch.stack(queue), 0.07)
        )
        for place, row in enumerate(embeddings(teacher), 3 * step):
            queue[place % 7] = row
        assert int(loss.queues[0].ends) == 3 * (step + 1) % 7
        torch.testing.assert_close(loss.queues[0].keys[0], torch.stack(queue))


def test_levels_have_queues_of_their_own() -> None:
    loss = build(num_levels=2)
    before = copy.deepcopy(loss.queues[0].state_dict())
    loss(STUDENT, TEACHER, level=1)
    assert [int(queue.ends) for queue in loss.queues] == [0, 3]
    assert torch.equal(loss.queues[0].keys, before['keys'])


def test_queue_is_saved_and_grows_only_in_training_steps() -> None:
    loss = build()
    loss.eval()(STUDENT, TEACHER)
    with torch.no_grad():
        loss.train()(STUDENT, TEACHER)
    assert not loss.queues[0].ends.any()
    loss(STUDENT, TEACHER)
    resumed = build(slots=7)
    resumed.queues[0].keys.zero_()
    resumed.load_state_dict(loss.state_dict())
    assert resumed(STUDENT, TEACHER) == loss(STUDENT, TEACHER)
    assert torch.equal(resumed.queues[0].keys, loss.queues[0].keys)
    assert int(resumed.queues[0].ends) == 6
    assert loss.queues[0].keys.dtype == torch.half


def test_every_process_stores_the_images_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = embeddings(-TEACHER)
    monkeypatch.setattr(queue_relation, 'all_gather', lambda rows: [rows, others])
    loss = build()
    loss(STUDENT, TEACHER)
    stored = torch.cat([embeddings(TEACHER), others])
    assert torch.equal(loss.queues[0].keys[0, :6], stored.half())


def test_value_is_zero_only_for_equal_similarities() -> None:
    rows = embeddings(TEACHER)
    keys = functional.normalize(waves((5, 4), 0.7, 0.3), dim=1)
    assert queue_divergence(rows, rows, keys) == 0
    assert queue_divergence(rows.flip(0), rows, keys) > 0


def test_keeps_the_loss_contract() -> None:
    check_loss(build(tau=0.5), STUDENT[:2, :, :2, :3], TEACHER[:2])


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'set channels=3, .* out_channels=3'):
        build()(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match='of the same images'):
        build()(STUDENT, TEACHER[:2])
    with pytest.raises(ValueError, match='num_levels=1, got level 1'):
        build()(STUDENT, TEACHER, level=1)
    with pytest.raises(ValueError, match='slots must be an integer of at least 1'):
        build(slots=0)
    with pytest.raises(ValueError, match='tau must be a finite number above 0'):
        build(tau=-1.0)
