from types import SimpleNamespace

import torch

from kdtoolbox.distillers.observing import Step

Toy = SimpleNamespace


def test_observers_see_wires_connectors_and_losses_with_their_graph(toy: Toy) -> None:
    aligned = dict(type='ConvConnector', input='student.fpn')
    aligned |= dict(in_channels=[8, 8, 8], out_channels=8)
    loss = dict(type='CWDLoss', student='aligned', teacher='teacher.fpn')
    model = toy.build_distiller(
        toy.gfl(), connectors=dict(aligned=aligned), losses=dict(loss_cwd=loss)
    )
    steps: list[Step] = []
    model.observers.append(steps.append)
    data = model.data_preprocessor(toy.det_data(), training=True)
    losses = model(**data, mode='loss')
    [step] = steps
    assert step.wires.keys() == {'student.fpn', 'teacher.fpn', 'aligned'}
    assert step.losses['loss_cwd'] is losses['loss_cwd']
    assert step.task_losses.keys() | step.losses.keys() == losses.keys()
    assert step.inputs is data['inputs']
    assert step.data_samples is data['data_samples']
    assert step.targets is None
    for wire in ('student.fpn', 'aligned'):
        for gradient in torch.autograd.grad(
            step.losses['loss_cwd'], step.wires[wire], retain_graph=True
        ):
            assert gradient.any()
    task = sum(sum(value) for value in step.task_losses.values())
    assert torch.autograd.grad(task, step.wires['student.fpn'])[0].any()
