"""Small real pairs of models, their batches, and training steps of them."""

from types import SimpleNamespace
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

Toy = SimpleNamespace
WIRES = dict(student='student.fpn', teacher='teacher.fpn')
PKD = dict(WIRES, type='PKDLoss')


def _gfl(toy: Toy) -> dict:
    fgd = dict(WIRES, type='FGDLoss', channels=8, num_levels=3)
    losses = dict(loss_pkd=PKD, loss_fgd=fgd)
    return toy.distiller(toy.gfl(), toy.gfl(base=16), losses=losses)


def _faster_rcnn(toy: Toy) -> dict:
    """Faster R-CNN with deformable convolutions, which only ResNets of 50 have."""
    sides = toy.faster_rcnn(), toy.faster_rcnn()
    for side in sides:
        backbone, neck = side['model']['backbone'], side['model']['neck']
        backbone |= dict(depth=50, stage_with_dcn=(False, True, True, True))
        backbone |= dict(dcn=dict(type='DCNv2', deform_groups=1))
        neck['in_channels'] = [4 * width for width in neck['in_channels']]
    return toy.distiller(*sides, losses=dict(loss_pkd=PKD))


def _pspnet(toy: Toy) -> dict:
    sides = toy.segmentor(), toy.segmentor()
    for side in sides:
        # Dropout draws other numbers on another device.
        for head in ('decode_head', 'auxiliary_head'):
            side['model'][head]['dropout_ratio'] = 0.0
    return toy.distiller(*sides)


PAIRS = {'GFL': _gfl, 'Faster R-CNN': _faster_rcnn, 'PSPNet': _pspnet}


def build(toy: Toy, name: str, **teacher: Any) -> Any:
    """Build a pair with further keys of its teacher."""
    config = PAIRS[name](toy)
    config['teacher'] |= teacher
    torch.manual_seed(0)
    return MODELS.build(config).train()


def batch(toy: Toy, model: Any) -> dict:
    core = getattr(model, 'student', None)
    if hasattr(core, 'decode_head'):
        return toy.seg_data()
    data = toy.det_data()
    for sample in data['data_samples']:
        # Anchors on a grid have equal distances to the centre of a box on it.
        sample.gt_instances.bboxes += torch.tensor([0.3, 1.1, 2.7, 0.9])
    return data


def train(
    toy: Toy, model: Any, wrapper: OptimWrapper | None = None, steps: int = 2
) -> list[dict[str, float]]:
    """Return the losses of each step."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    wrapper, logs = wrapper or OptimWrapper(sgd), []
    for step in range(steps):
        # Samplers of mmdet draw on the CPU.
        torch.manual_seed(step)
        log = model.train_step(batch(toy, model), wrapper)
        logs.append({key: float(log[key].detach()) for key in log if 'loss' in key})
    return logs
