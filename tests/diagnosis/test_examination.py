import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from kdtoolbox.diagnosis.examination import Case, examine
from kdtoolbox.diagnosis.findings import find
from kdtoolbox.diagnosis.report import print_report

# Models are trained and evaluated.
pytestmark = pytest.mark.e2e

EQUAL = ((64, 64), (64, 64))
"""In an evaluation mmseg stacks only images of one size."""


def case(toy: SimpleNamespace, task: str = 'seg', **changes: Any) -> Case:
    """Return a case with a random teacher, which cannot help."""
    config = toy.segmentor() if task == 'seg' else toy.gfl()
    data = toy.seg_data(EQUAL) if task == 'seg' else toy.det_data()
    torch.manual_seed(0)
    model = toy.build_distiller(config, config)
    model.init_weights()
    evaluator = dict(type='mmseg.IoUMetric') if task == 'seg' else None
    metainfo = dict(classes=[*'abcd'])
    dataset: Any = SimpleNamespace(metainfo=metainfo)
    values = dict(
        distiller=model,
        teacher=config,
        train=[data],
        val=[data],
        evaluator=evaluator,
        metainfo=metainfo,
        dataset=dataset,
        steps=4,
    )
    return Case(**(values | changes))


def printed(found: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(found, find(found), console)
    return console.file.getvalue()


def test_a_random_teacher_is_found_broken(toy: SimpleNamespace) -> None:
    found = examine(case(toy))
    assert found.scores.metric == 'mIoU'
    assert found.scores.images == 2
    assert None not in (found.scores.teacher, found.scores.student, found.scores.random)
    assert found.losses.keys() == found.overfit.keys() == {'task', 'loss_cwd'}
    problems = [x.problem for x in find(found) if x.severity == 'serious']
    assert any('broken' in problem for problem in problems)
    text = printed(found)
    for part in (
        'Models',
        'Losses',
        'Similarity',
        'single batch',
        'serious: The teach',
    ):
        assert part in text


def test_nothing_of_the_model_changes(toy: SimpleNamespace) -> None:
    examined = case(toy)
    before = {k: v.clone() for k, v in examined.distiller.state_dict().items()}
    mode = examined.distiller.training
    examine(examined)
    after = examined.distiller.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert examined.distiller.training == mode
    assert not examined.distiller.observers


def test_a_detector_without_a_metric_is_not_scored(toy: SimpleNamespace) -> None:
    found = examine(case(toy, 'det'))
    assert 'val_evaluator' in found.scores.fault
    assert found.task_losses.teacher is not None
    assert 'could not be scored' in printed(found)


def test_a_teacher_of_other_classes_is_not_scored(toy: SimpleNamespace) -> None:
    examined = case(toy)
    examined.distiller.teacher.classes = ('d', 'c', 'b', 'a')
    found = examine(examined)
    assert found.classes.differ
    assert found.scores.teacher is None
    assert found.scores.student is not None
    assert found.task_losses.teacher is None
    assert 'classes of teacher and data differ' in printed(found)
    # The losses are measured all the same.
    assert found.losses['loss_cwd'].share is not None


def test_a_loss_that_is_not_finite_is_a_finding(toy: SimpleNamespace) -> None:
    examined = case(toy)
    examined.distiller.losses['loss_cwd'].loss_weight = float('inf')
    found = examine(examined)
    assert 'loss_cwd' in found.fault
    assert any(x.problem == 'A loss cannot be computed' for x in find(found))


@pytest.mark.parametrize('classes', [['[red]'], ['a[b]c']])
def test_names_with_brackets_are_printed(classes: list, toy: SimpleNamespace) -> None:
    found = examine(case(toy, evaluator=None))
    found.scores.classes = {classes[0]: (0.5, 0.1)}
    assert classes[0] in printed(found)
