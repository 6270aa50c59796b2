from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from kdtoolbox.configuration import load_config


def test_package_config_is_the_one_mmengine_reads() -> None:
    from mmengine.hub import get_config

    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert load_config(name).model == get_config(name).model


def test_mmseg_package_config() -> None:
    config = load_config('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert config.model.type == 'EncoderDecoder'
    assert config.model.backbone.depth == 18


def test_mmseg_inheritance_works_under_either_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmseg::_base_/models/fpn_r50.py'\n")
    assert load_config(path).model.neck.type == 'FPN'


@pytest.mark.parametrize('as_type', [str, Path])
def test_file_with_inheritance(tmp_path: Path, as_type: type) -> None:
    (tmp_path / 'base.py').write_text("model = dict(type='A', depth=1)\n")
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'base.py'\nmodel = dict(depth=2)\n")
    assert load_config(as_type(path)).model == dict(type='A', depth=2)


def test_dict_is_copied_and_config_passes() -> None:
    source = dict(model=dict(type='A'))
    config = load_config(source)
    config.model.type = 'B'
    assert source == dict(model=dict(type='A'))
    assert load_config(config) is config


def test_unknown_config_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r'mmdet::gfl/gfl_r50_fpn_1x_coco\.py'):
        load_config('mmdet::gfl/gfl_r50_fpn_1x_coc.py')


def test_unknown_package() -> None:
    with pytest.raises(ValueError, match="'mmdett' is not installed"):
        load_config('mmdett::gfl/gfl_r50_fpn_1x_coco.py')


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_config(str(tmp_path / 'nowhere.py'))


def test_config_of_a_dict_is_a_config() -> None:
    assert isinstance(load_config({}), Config)
