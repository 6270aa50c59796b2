from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.losses.features.ofd import expected_negative, partial_squared_error

BEFORE = dict(before='decode_head.bottleneck.bn')
LOSS = dict(
    type='OFDLoss',
    student='student.before',
    teacher='teacher.before',
    margin='margin.before',
)


def build(toy: SimpleNamespace, **changes: Any) -> Any:
    torch.manual_seed(0)
    arguments: dict[str, Any] = dict(
        sources=[dict(type='PreActivations')],
        recorders=dict(student=BEFORE, teacher=BEFORE),
        losses=dict(loss_ofd=LOSS),
    )
    model = toy.build_distiller(toy.segmentor(), None, **(arguments | changes))
    norm = model.teacher.model.decode_head.bottleneck.bn
    norm.bias.data.uniform_(-1, 1)
    norm.weight.data.uniform_(-1, 1)
    return model


def loss_of(model: Any, toy: SimpleNamespace) -> dict:
    torch.manual_seed(1)
    batch = model.data_preprocessor(toy.seg_data(), training=True)
    return model.train()(**batch, mode='loss')


def test_the_teachers_norm_gives_records_and_margins(toy: SimpleNamespace) -> None:
    model, wires = build(toy), {}
    collect = model.wiring.collect
    model.wiring.collect = lambda *given: wires.update(collect(*given)) or wires
    losses = loss_of(model, toy)
    norm = model.teacher.model.decode_head.bottleneck.bn
    [student_values], [teacher_values], [margin] = (
        wires[LOSS[key]] for key in list(LOSS)[1:]
    )
    assert (student_values < 0).any()
    assert (teacher_values < 0).any()
    expected = expected_negative(norm.bias, norm.weight.abs())
    torch.testing.assert_close(margin, expected)
    expected = 1e-3 * partial_squared_error(student_values, teacher_values, margin)
    torch.testing.assert_close(losses['loss_ofd'], expected)


def test_the_task_losses_are_those_without_distillation(toy: SimpleNamespace) -> None:
    losses, plain = (
        loss_of(build(toy, **changes), toy)
        for changes in (
            {},
            dict(
                sources=[],
                recorders=dict(
                    student=dict(fpn='backbone'), teacher=dict(fpn='backbone')
                ),
                losses=dict(
                    loss_cwd=dict(
                        type='CWDLoss', student='student.fpn', teacher='teacher.fpn'
                    )
                ),
            ),
        )
    )
    assert losses['loss_ofd'] > 0
    for name in ('decode.loss_ce', 'aux.loss_ce'):
        torch.testing.assert_close(losses[name], plain[name], rtol=0, atol=0)


def test_such_records_raise_without_the_source(toy: SimpleNamespace) -> None:
    entry = {key: value for key, value in LOSS.items() if key != 'margin'}
    model = build(toy, sources=[], losses=dict(loss_ofd=entry))
    with pytest.raises(ValueError, match='overwritten in place'):
        loss_of(model, toy)


def test_only_norms_have_margins(toy: SimpleNamespace) -> None:
    recorders = dict(student=BEFORE, teacher=dict(before='decode_head.bottleneck'))
    with pytest.raises(ValueError, match=r'margin\.before'):
        build(toy, recorders=recorders)


def test_a_wrong_path_is_refused_with_its_place(toy: SimpleNamespace) -> None:
    recorders = dict(student=dict(before='decode_head.neck.bn'), teacher=BEFORE)
    with pytest.raises(ValueError, match=r'model\.recorders\.student\.before: Encoder'):
        build(toy, recorders=recorders)
