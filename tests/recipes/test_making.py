from pathlib import Path

import pytest

from kdtoolbox.recipes.making import make_recipe


@pytest.mark.e2e
def test_features_of_other_layers_are_compared_before_the_classifier(
    tmp_path: Path,
) -> None:
    # The recipes of MGD record the last stage of a ResNet.
    folder = 'mmseg::segformer/segformer_mit'
    pair = (f'{folder}-{size}_8xb2-160k_ade20k-512x512.py' for size in ('b0', 'b1'))
    text = make_recipe('mgd', *pair, None, None, tmp_path)
    assert 'as --at head' in text
    assert "c5='decode_head.fusion_conv'" in text
    assert "logits='decode_head.conv_seg'" in text


@pytest.mark.e2e
def test_a_recipe_of_features_is_taken_where_logits_are_unlike(tmp_path: Path) -> None:
    student = 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py'
    teacher = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    text = make_recipe('cwd', student, teacher, None, None, tmp_path)
    assert 'numbers of cwd/cwd_fpn_' in text
