"""Distillers of every kind on four images that can be dealt out to processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from deal import load
from torch import Tensor

SQUARE = ((64, 64),) * 4
TOY = load('tests/conftest.py')
CWD = dict(type='CWDLoss', teacher='teacher.fpn')


def _test_of(kind: str) -> Any:
    return load(f'tests/distillers/{kind}.py')


def _gfl(**losses: dict) -> Any:
    """GFL under a wider GFL: connectors that learn, losses that do, and one of each."""
    shared = dict(input='student.fpn', in_channels=8)
    connectors = dict(aligned=dict(shared, type='ConvConnector', out_channels=16))
    return TOY.build_distiller(
        TOY.gfl(),
        TOY.gfl(base=16, out=16),
        connectors=connectors,
        losses=dict(loss_cwd=dict(CWD, student='aligned'), **losses),
    ).train()


def _learning() -> Any:
    """Losses with parameters of their own beside a connector."""
    wires = dict(student='aligned', teacher='teacher.fpn')
    sizes = dict(wires, channels=16, num_levels=3)
    return _gfl(
        loss_fgd=dict(sizes, type='FGDLoss'),
        loss_vid=dict(sizes, type='VIDLoss'),
        loss_fbkd=dict(sizes, type='FBKDLoss'),
    )


def _dense(family: str, layer: str) -> Any:
    """A loss that divides by the count of positives which the head trains on."""
    config = _test_of('sources/test_cross_head').detector(TOY, family)
    layers = dict(cls=f'bbox_head.{layer}')
    wires = dict(student='student.cls', teacher='teacher.cls')
    return TOY.build_distiller(
        config,
        recorders=dict(student=layers, teacher=layers),
        losses=dict(loss_cls_kd=dict(wires, type='CrossKDClsLoss')),
    ).train()


def _segmentor() -> Any:
    layer = dict(fpn='decode_head.conv_seg')
    model = TOY.build_distiller(
        TOY.segmentor(),
        TOY.segmentor(base=16),
        recorders=dict(student=layer, teacher=layer),
        losses=dict(loss_cwd=dict(CWD, student='student.fpn')),
    )
    # Norms over the batch and dropout tell processes apart.
    return model.eval()


def shardable() -> Any:
    """A segmentor: `fully_shard` refuses the scalar parameters of mmdet's heads."""
    layers = dict(fpn='backbone.layer3', logits='decode_head.conv_seg')
    aligned = dict(type='ConvConnector', input='student.fpn')
    logits = dict(type='CWDLoss', student='student.logits', teacher='teacher.logits')
    model = TOY.build_distiller(
        TOY.segmentor(),
        TOY.segmentor(base=16),
        recorders=dict(student=layers, teacher=layers),
        connectors=dict(aligned=dict(aligned, in_channels=32, out_channels=64)),
        losses=dict(loss_cwd=dict(CWD, student='aligned'), loss_logits=logits),
    )
    return model.double().eval()


EXACT: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    # In float64 mmdet's GFL counts in another precision where there are no boxes.
    'GFL': (_gfl, (2, 1, 1, 3)),
    'ATSS': (lambda: _dense('atss', 'atss_cls'), (2, 1, 0, 3)),
    'FCOS': (lambda: _dense('fcos', 'conv_cls'), (2, 1, 0, 3)),
    'segmentor': (_segmentor, ()),
}
"""Those that do not depend on which images share a process, and boxes of each image."""

KINDS: dict[str, Callable[[], Any]] = {
    'Distiller': _learning,
    'CrossHead': lambda: _test_of('sources/test_cross_head').crosskd(TOY, 'gfl'),
    'RoIResponses': lambda: _test_of('sources/test_roi_responses').roi(TOY),
    'BridgedRoIs': lambda: _test_of('sources/test_bridged_rois').fcfd(TOY),
    'ObjectQueries': lambda: _test_of('sources/test_object_queries').build(TOY, 'DINO'),
    'PreActivations': lambda: _test_of('sources/test_pre_activations').build(TOY),
    'ClassifierWeights': lambda: _test_of('sources/test_classifier_weights').build(TOY),
    'Pretrainer': lambda: _test_of('test_pretrainer').build(TOY),
    'TokenTrainer': lambda: _test_of('test_token_trainer').trainer_of(TOY.gfl()),
}


def queues(model: Any) -> dict[str, Tensor]:
    """Return the queues of earlier images in a model."""
    return {k: v for k, v in model.state_dict().items() if '.queues.' in k}


def seeded(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build()


def images(
    model: Any, which: Iterable[int], boxes: Sequence[int], dtype: Any = torch.float32
) -> dict[str, Any]:
    """Return some of four images for a model; the i-th has `boxes[i]` boxes."""
    segments = hasattr(_core(model), 'decode_head')
    whole = TOY.seg_data(SQUARE) if segments else TOY.det_data(SQUARE)
    data = {key: [values[i] for i in which] for key, values in whole.items()}
    if not segments:
        for index, sample in zip(which, data['data_samples'], strict=True):
            sample.gt_instances = _boxes(boxes[index], index)
    batch = model.data_preprocessor(data, training=True)
    return dict(batch, inputs=batch['inputs'].to(dtype))


def _boxes(count: int, index: int) -> Any:
    boxes = TOY.det_data(boxes=count)['data_samples'][0].gt_instances
    boxes.bboxes += index + 6.0 * torch.arange(count)[:, None]
    boxes.labels = (torch.arange(count) + index) % 3
    return boxes


def _core(model: Any) -> Any:
    return model.student if hasattr(model, 'student') else model.teacher.model


def phases(model: Any) -> Iterator[str]:
    """Set the weights of the losses as `LossWeightHook` does in a run."""
    losses = list(getattr(model, 'losses', {}).values())
    weights = [loss.loss_weight for loss in losses]
    yield 'all'
    for count, phase in ((1, 'one stopped'), (len(losses), 'all stopped')):
        for loss in losses[:count]:
            loss.loss_weight = 0.0
        if losses:
            yield phase
    for loss, weight in zip(losses, weights, strict=True):
        loss.loss_weight = weight
    yield 'all again'


def backward(model: Any, wrapped: Any, batch: dict[str, Any]) -> Tensor:
    """Make the gradients of one step and return the loss."""
    model.zero_grad()
    total, _ = model.parse_losses(wrapped(**batch, mode='loss'))
    total.backward()
    return total.detach()


def gradients(model: Any) -> dict[str, Tensor | None]:
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
