from types import SimpleNamespace
from typing import Any

import pytest
import torch

Toy = SimpleNamespace

LAYER = 'decode_head.conv_seg'
LOSS = dict(
    type='FAKDLoss',
    student='student.logits',
    teacher='teacher.logits',
    features='student.features',
    classifier='student.classifier',
    num_classes=4,
    student_channels=8,
    ramp_iterations=1,
)
RECORDERS = dict(
    student=dict(logits=LAYER, features=dict(source=LAYER, what='input')),
    teacher=dict(logits=LAYER),
)


def build(toy: Toy, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = toy.distiller(toy.segmentor(), toy.segmentor(base=16))
    given = {k: changes.pop(k) for k in ('classifier',) if k in changes}
    config |= dict(sources=[dict(type='ClassifierWeights') | given])
    config |= dict(recorders=RECORDERS)
    config |= dict(losses=dict(loss_fakd=LOSS)) | changes
    return toy.build(dict(model=config, default_scope='mmseg')).train()


def test_the_loss_reads_and_trains_the_weights(toy: Toy) -> None:
    model = build(toy)
    data = model.data_preprocessor(toy.seg_data(), training=True)
    model(**data, mode='loss')
    weight = model.student.decode_head.conv_seg.weight
    wires = model.wiring.collect(model._models, {}, [None])
    [found] = wires['student.classifier']
    assert found is weight
    # In the second step lambda is above 0, which changes the gradient.
    gradients = []
    for strength in (0.0, 0.5):
        model.losses.loss_fakd.strength = strength
        torch.manual_seed(0)
        losses = model(**data, mode='loss')
        gradients += torch.autograd.grad(losses['loss_fakd'], weight)
    assert all(gradient.any() for gradient in gradients)
    assert not torch.allclose(*gradients)


def test_only_the_loss_adds_buffers_to_the_checkpoint(toy: Toy) -> None:
    names = set(build(toy).state_dict())
    buffers = {
        f'losses.loss_fakd.{x}' for x in ('counts', 'means', 'variances', 'steps')
    }
    assert {n for n in names if not n.startswith('student.')} == buffers


def test_wrong_layers_and_names_are_refused(toy: Toy) -> None:
    with pytest.raises(
        ValueError, match=r"sources\[0\]\.classifier: .*conv_sag'; nearest: .*conv_seg"
    ):
        build(toy, classifier='decode_head.conv_sag')
    with pytest.raises(
        ValueError,
        match=r"sources\[0\]\.classifier: .*\.dropout': 'Dropout2d'.*conv_seg",
    ):
        build(toy, classifier='decode_head.dropout')
    taken = dict(student=dict(classifier=LAYER), teacher={})
    with pytest.raises(
        ValueError, match=r"student: .* makes \['classifier'\] itself; choose"
    ):
        build(toy, recorders=taken)
