from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdtoolbox.inspection.outline import outline
from kdtoolbox.teachers.models import build_model

Toy = SimpleNamespace


def shapes(values: list) -> list[tuple[int, ...]]:
    return [value.shape for value in values]


def test_a_detector(toy: Toy) -> None:
    found = outline(toy.build(toy.gfl()), side=64)
    assert found.error is None
    maps = found.layers['neck'].outputs
    assert shapes(maps) == [(2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 2, 2)]
    assert [found.stride(value.shape) for value in maps] == [8, 16, 32]
    head = found.layers['bbox_head']
    assert found.layers['bbox_head.gfl_cls'].calls == 3
    assert found.makers(head.outputs[0].number, 'bbox_head') == ['bbox_head.gfl_cls']
    assert found.layers['neck.fpn_convs'].calls == 0
    assert list(found.layers) == [n for n, _ in toy.build(toy.gfl()).named_modules()]


def test_a_segmentor_and_the_features_before_its_classifier(toy: Toy) -> None:
    found = outline(toy.build(toy.segmentor()), side=64)
    [logits] = found.layers['decode_head.conv_seg'].outputs
    assert logits.shape[1] == 4
    [features] = found.layers['decode_head.conv_seg'].inputs
    assert features in found.layers['decode_head.dropout'].outputs


def test_the_model_and_the_random_state_stay(toy: Toy) -> None:
    model = toy.build(toy.gfl()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    outline(model, side=64)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_loss_leaves_what_ran_before(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.build(toy.gfl())

    def fail(*args: object, **kwargs: object) -> None:
        raise IndexError('no targets')

    monkeypatch.setattr(type(model.bbox_head), 'loss', fail)
    found = outline(model, side=64)
    assert isinstance(found.error, IndexError)
    assert found.layers['neck'].calls == 1
    # A forward without losses calls the members of the head, not the head.
    assert found.layers['bbox_head.gfl_cls'].calls == 3


@pytest.mark.e2e
@pytest.mark.parametrize(
    'config',
    [
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::htc/htc_r50_fpn_1x_coco.py',
        'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        'mmdet::solo/solo_r50_fpn_1x_coco.py',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    ],
)
def test_losses_of_many_families_run_on_made_up_images(config: str) -> None:
    model: nn.Module = build_model(config)
    assert outline(model, side=256).error is None
