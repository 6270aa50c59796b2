"""Several processes compute what one computes on all their images."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import deal
import kinds
import pytest
import torch
from rounding import rounding
from torch import Tensor

from kdtoolbox.registry import MODELS

RANKS = (2, 4)
# Relative to the largest value of a tensor, in float64: a million roundings, and a
# hundred times what mmseg's loss adds to the pixels of an image (float32's eps).
EXACT = 1e-9
# Divided by float32 counts and means, the losses of mmdet's heads round a few times.
COUNTED = rounding(torch.float32, 10)
HEADINGS = (
    'Equal to one process',
    'Equal where each pixel has a label',
    'Sums over the images',
    'Statistics of the images',
)


@pytest.fixture(scope='module')
def batch() -> Any:
    return deal.make_batch()


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict]:
    """Return what ranks.py found, by the number of processes and the rank."""
    folder = tmp_path_factory.mktemp('ranks')
    environment = os.environ | dict(GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')
    command = [sys.executable, str(deal.ROOT / 'tests/distributed/ranks.py')]
    outputs = [(folder / f'{rank}.log').open('w') for rank in range(max(RANKS))]
    processes = [
        subprocess.Popen(
            [*command, str(folder), str(rank)],
            cwd=deal.ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        codes = [process.wait(timeout=1800) for process in processes]
    finally:
        for process, output in zip(processes, outputs, strict=True):
            process.kill()
            output.close()
    logs = [Path(output.name).read_text()[-2000:] for output in outputs]
    assert codes == [0] * len(codes), '\n'.join(logs)
    return {
        (ranks, rank): torch.load(folder / f'{ranks}_{rank}.pt')
        for ranks in RANKS
        for rank in range(ranks)
    }


def mean(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([one[name] for one in gradients]).mean(0)
        for name in gradients[0]
    }


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference, over the largest value of each tensor."""
    assert found.keys() == expected.keys()
    assert any(value.any() for value in expected.values())
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in expected.items()
    )


def listed(heading: str) -> set[str]:
    """Return the losses that docs/distributed.md names under a heading.

    Under the first heading are all losses that the page names under no other one.
    """
    if heading == HEADINGS[0]:
        return set(deal.names()) - {x for other in HEADINGS[1:] for x in listed(other)}
    page = (deal.ROOT / 'docs/distributed.md').read_text()
    _, _, section = page.partition(f'\n### {heading}\n')
    return set(re.findall(r'`(\w+Loss)`', section.partition('\n#')[0]))


def dealt(student: deal.Student, batch: Any, ranks: int) -> dict[str, Tensor]:
    """Return the mean of the gradients of shares, each with the loss as it was."""
    found = []
    for rank in range(ranks):
        replica = copy.deepcopy(student)
        replica(deal.deal(batch, rank, ranks)).backward()
        found.append(replica.gradients())
    return mean(found)


def is_equal(student: deal.Student, batch: Any, sums: bool = False) -> bool:
    whole = dealt(student, batch, 1)
    for ranks in RANKS:
        found = dealt(student, batch, ranks)
        scaled = {k: v * ranks if sums else v for k, v in found.items()}
        if largest_error(scaled, whole) > EXACT:
            return False
    return True


def kind_of(name: str, batch: Any, labelled: Any) -> str:
    student = deal.Student(name, batch)
    if is_equal(student, batch):
        return HEADINGS[0]
    if is_equal(student, labelled):
        return HEADINGS[1]
    return HEADINGS[2 if is_equal(student, batch, sums=True) else 3]


@pytest.mark.e2e
def test_the_page_tells_what_each_loss_sees(batch: Any) -> None:
    labelled = deal.make_batch(ignored=0)
    found = {name: kind_of(name, batch, labelled) for name in deal.names()}
    listed_once = [name for heading in HEADINGS for name in listed(heading)]
    assert sorted(listed_once) == sorted(found)
    for name, heading in found.items():
        assert name in listed(heading), f'{name} belongs under {heading!r}'


@pytest.mark.e2e
def test_the_page_tells_which_losses_keep_a_state(batch: Any) -> None:
    keeping = set()
    for name in deal.names():
        student = deal.Student(name, batch)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        student(batch)
        after = student.state_dict()
        if not all(torch.equal(after[key], value) for key, value in before.items()):
            keeping.add(name)
    assert listed('State of a process') == keeping


@pytest.mark.e2e
@pytest.mark.parametrize('ranks', RANKS)
def test_every_process_stores_the_images_of_all(
    ranks: int, batch: Any, found: dict
) -> None:
    student = deal.Student('QueueRelationLoss', batch)
    before = {name: value.clone() for name, value in kinds.queues(student).items()}
    student(batch)
    for name, value in kinds.queues(student).items():
        assert not torch.equal(value, before[name])
        for rank in range(ranks):
            assert torch.equal(found[ranks, rank]['queues'][name], value), name


@pytest.mark.e2e
@pytest.mark.parametrize('ranks', RANKS)
def test_two_and_four_processes_give_the_gradients_of_the_joined_batch(
    ranks: int, batch: Any, found: dict
) -> None:
    for name in listed(HEADINGS[0]):
        student = deal.Student(name, batch)
        student(batch).backward()
        for rank in range(ranks):
            gradients = found[ranks, rank]['losses'][name]
            assert largest_error(gradients, student.gradients()) < EXACT, name
    for name in deal.names():
        # And nothing but a mean of the gradients joins the processes.
        expected = dealt(deal.Student(name, batch), batch, ranks)
        assert largest_error(found[ranks, 0]['losses'][name], expected) < EXACT, name
    for name, (build, boxes) in kinds.EXACT.items():
        model = kinds.seeded(build).double()
        data = kinds.images(model, range(4), boxes, torch.float64)
        kinds.backward(model, model, data)
        for rank in range(ranks):
            gradients = found[ranks, rank]['distillers'][name]
            assert largest_error(gradients, kinds.gradients(model)) < COUNTED, name


@pytest.mark.e2e
@pytest.mark.parametrize('kind', kinds.KINDS)
@pytest.mark.parametrize('boxes', [0, 1], ids=['no boxes', 'boxes'])
def test_each_parameter_gets_a_gradient_in_each_phase(kind: str, boxes: int) -> None:
    model = kinds.seeded(kinds.KINDS[kind]).train()
    for phase in kinds.phases(model):
        kinds.backward(model, model, kinds.images(model, range(2), [boxes] * 2))
        for name, gradient in kinds.gradients(model).items():
            assert gradient is not None, (phase, name)
            assert gradient.isfinite().all(), (phase, name)


@pytest.mark.e2e
def test_no_parameter_is_left_unused_in_any_distiller(found: dict) -> None:
    """Not even where one process has no boxes, which DDP would end with an error."""
    first, second = (found[2, rank]['unused'] for rank in range(2))
    assert first.keys() == second.keys() == kinds.KINDS.keys()
    for kind, phases in first.items():
        assert len(phases) > 1
        for phase, gradients in phases.items():
            assert all(gradient is not None for gradient in gradients.values())
            for name, gradient in gradients.items():
                assert torch.equal(gradient, second[kind][phase][name]), (kind, phase)


def test_every_kind_of_distiller_is_tried() -> None:
    registered = {
        name
        for name, kind in MODELS.module_dict.items()
        if kind.__module__.startswith('kdtoolbox.distillers.')
    }
    assert registered == kinds.KINDS.keys()


@pytest.mark.e2e
def test_a_sharded_student_learns_as_a_whole_one(found: dict) -> None:
    first, second = (found[2, rank]['sharded'] for rank in range(2))
    if not first:
        pytest.skip('torch.distributed.fsdp.fully_shard needs torch 2.6')
    model = kinds.seeded(kinds.shardable)
    before = {k: v.clone() for k, v in model.teacher.model.state_dict().items()}
    batch = kinds.images(model, range(4), (), torch.float64)
    loss = kinds.backward(model, model, batch)
    torch.testing.assert_close(first['loss'], loss)
    for rank in (first, second):
        error = largest_error(rank['gradients'], kinds.gradients(model))
        assert error < EXACT
        assert rank['same_paths']
        assert rank['beyond_the_records'] == []
        # Whole on each process, and as it was.
        assert rank['teacher'].keys() == before.keys()
        for name, value in rank['teacher'].items():
            assert torch.equal(value, before[name])
    for name, gradient in kinds.gradients(model).items():
        assert first['shares'][name] + second['shares'][name] == gradient.numel()
    assert any(
        0 < first['shares'][name] < gradient.numel()
        for name, gradient in kinds.gradients(model).items()
    )
