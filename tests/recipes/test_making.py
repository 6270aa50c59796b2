from pathlib import Path

import pytest

from kdtoolbox.recipes.making import make_recipe


@pytest.mark.e2e
def test_features_in_place_of_logits_take_a_recipe_of_features(tmp_path: Path) -> None:
    # The first recipe of CWD for a dense head compares the logits of a GFL.
    student = 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py'
    teacher = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    text = make_recipe('cwd', student, teacher, None, None, tmp_path)
    assert 'as --at neck' in text
    assert 'numbers of cwd/cwd_fpn_' in text
