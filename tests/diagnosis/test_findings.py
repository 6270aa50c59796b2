"""Findings from made-up measurements."""

from dataclasses import replace

import pytest

from kdtoolbox.diagnosis.findings import find
from kdtoolbox.diagnosis.measurements import (
    Classes,
    LossReport,
    Measurements,
    Scores,
    Similarity,
    TaskLosses,
)

PLACE = 'student.fpn'


def report(own: float = 1.0, task: float = 1.0, **changes) -> LossReport:
    found = LossReport(3.0, 0.5, 2.0, PLACE, {PLACE: own}, {PLACE: task})
    found.shares[PLACE] = own / (own + task)
    found.cosines[PLACE] = 0.1
    return replace(found, **changes)


def healthy(**changes) -> Measurements:
    values = dict(
        scores=Scores('coco/bbox_mAP', 64, 1.0, 0.6, 0.3, 0.0),
        task_losses=TaskLosses(0.5, 2.0),
        losses=dict(task=LossReport(3.0, 0.5), loss_cwd=report()),
        similarities=[Similarity(PLACE, 'teacher.fpn', 0, 0.4)],
        overfit=dict(task=[2.0, 1.8, 1.6, 1.4], loss_cwd=[3.0, 2.9, 2.5, 2.0]),
    )
    return Measurements(**(values | changes))


def scores(teacher: float, student: float, random: float = 0.0) -> Scores:
    return Scores('mIoU', 64, 100.0, teacher, student, random)


def losses(**changes) -> dict:
    return dict(losses=dict(task=LossReport(3.0, 0.5), loss_cwd=report(**changes)))


def test_nothing_is_wrong_with_a_healthy_run() -> None:
    assert find(healthy()) == []


@pytest.mark.parametrize(
    ('changes', 'severity', 'problem', 'mend'),
    [
        (dict(task_losses=TaskLosses(2.1, 2.0)), 'serious', 'broken', 'checkpoint'),
        (
            dict(task_losses=TaskLosses(float('nan'), 2.0)),
            'serious',
            'broken',
            'checkpoint',
        ),
        (dict(scores=scores(1.0, 0.5, 0.4)), 'serious', 'broken', 'data_preprocessor'),
        (dict(scores=scores(40.0, 60.0)), 'serious', 'worse than the student', 'stron'),
        (dict(scores=scores(60.0, 59.0)), 'warning', 'hardly better', '--batches'),
        (dict(scores=scores(59.0, 60.0)), 'warning', 'hardly better', '--batches'),
        (dict(scores=scores(99.9, 97.0)), 'warning', 'nothing left', 'smaller student'),
        (
            dict(scores=Scores(fault='ValueError: no')),
            'note',
            'could not be scored',
            'tools/test.py',
        ),
        (
            dict(classes=Classes(('a', 'b'), ('b', 'a'))),
            'warning',
            'classes of teacher and data differ',
            'metainfo.classes',
        ),
        (
            dict(classes=Classes(fault='train_dataloader.dataset: other order')),
            'serious',
            'classes of teacher and data differ',
            'metainfo.classes',
        ),
        (
            dict(classes=Classes(counts=(80, 10))),
            'warning',
            'classes of teacher and data differ',
            'none is needed while no loss compares classes',
        ),
        (
            losses(own=1e5),
            'serious',
            'weight of loss_cwd is far too large',
            'loss_weight=0.00018',
        ),
        (losses(own=19.0), 'note', 'weight of loss_cwd is large', 'loss_weight=0.9'),
        (
            losses(own=0.001),
            'warning',
            'weight of loss_cwd is far too small',
            'loss_weight=222`',
        ),
        (
            losses(cosines={PLACE: -0.5}),
            'warning',
            'loss_cwd opposes the task',
            'model.losses.loss_cwd.loss_weight',
        ),
        (losses(value=0.0), 'serious', 'loss_cwd is always 0', 'thresholds'),
        (losses(weight=0.0), 'note', 'loss_cwd is switched off', 'loss_weight=1.0'),
        (
            losses(place=None),
            'warning',
            'train nothing in common',
            'student` of model.losses.loss_cwd',
        ),
        (
            dict(overfit=dict(task=[2.0, 2.1, 1.99, 2.0])),
            'serious',
            'own loss does not fall',
            'labels',
        ),
        (
            dict(overfit=dict(loss_cwd=[2.0, 2.1, 2.2, 2.2])),
            'warning',
            'loss_cwd does not fall',
            'loss_weight',
        ),
        (
            dict(similarities=[Similarity(PLACE, 'teacher.fpn', 0, 0.995)]),
            'warning',
            'already nearly equal',
            'other layers',
        ),
        (dict(fault='model.losses.loss_cwd: inf'), 'serious', 'computed', 'train.py'),
    ],
)
def test_each_fault_is_named_with_its_line(
    changes: dict, severity: str, problem: str, mend: str
) -> None:
    [finding] = find(healthy(**changes))
    assert finding.severity == severity
    assert problem in finding.problem
    assert finding.measured
    assert mend in finding.mend


def test_the_suggested_weight_of_a_small_loss_is_larger() -> None:
    [finding] = find(healthy(**losses(own=0.001)))
    # A share of 10 % needs 1/9 of the task's gradient; the loss has 1/1000 at weight 2.
    assert f'loss_weight={2 * 1000 / 9:.3g}` gives it 10%' in finding.mend


def test_equal_records_on_one_level_alone_are_fine() -> None:
    levels = [Similarity(PLACE, 'teacher.fpn', i, x) for i, x in enumerate((0.99, 0.5))]
    assert find(healthy(similarities=levels)) == []


def test_a_broken_teacher_is_also_worse_than_a_trained_student() -> None:
    found = find(
        healthy(task_losses=TaskLosses(2.1, 2.0), scores=scores(0.0, 30.0, 0.0))
    )
    assert [x.severity for x in found] == ['serious'] * 2
    assert 'broken' in found[0].problem
    assert 'worse' in found[1].problem


def test_an_untrained_student_is_not_better_than_a_broken_teacher() -> None:
    found = find(
        healthy(task_losses=TaskLosses(2.1, 2.0), scores=scores(0.5, 0.8, 0.6))
    )
    assert len(found) == 1
    assert 'broken' in found[0].problem


def test_names_in_another_style_are_equal() -> None:
    same = Classes(('Traffic Light', 'car'), ('traffic_light', 'Car'))
    assert not same.differ
    assert find(healthy(classes=same)) == []


def test_serious_findings_come_first() -> None:
    found = find(
        healthy(
            fault='loss', scores=scores(60.0, 59.0), **losses(cosines={PLACE: -1.0})
        )
    )
    assert [x.severity for x in found] == ['serious', 'warning', 'warning']
