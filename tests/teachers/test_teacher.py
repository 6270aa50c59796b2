import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from torch import nn

from kdtoolbox.configuration import load_config
from kdtoolbox.teachers import MMEngineTeacher
from kdtoolbox.teachers.models import build_model

Toy = SimpleNamespace


def batch(teacher: MMEngineTeacher, data: dict) -> dict:
    return teacher.model.data_preprocessor(data, training=True)


def forbid(model: nn.Module, *paths: str) -> None:
    """Make the named modules and methods raise an error when they are used."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError('the teacher must not run this')

    for path in paths:
        owner, _, name = path.rpartition('.')
        module = model.get_submodule(owner)
        if isinstance(getattr(module, name), nn.Module):
            getattr(module, name).register_forward_pre_hook(never)
        else:
            setattr(module, name, never)


def test_no_checkpoint_is_refused_with_the_cure(toy: Toy) -> None:
    with pytest.raises(ValueError, match='set `allow_random=True`'):
        MMEngineTeacher(toy.gfl())
    MMEngineTeacher(toy.gfl(), allow_random=True)


def test_config_from_dict_file_and_package(toy: Toy, tmp_path: Path) -> None:
    config = toy.gfl()
    lines = [f'{key} = {value!r}\n' for key, value in config.items()]
    (tmp_path / 'gfl.py').write_text(''.join(lines))
    for source in (config, str(tmp_path / 'gfl.py')):
        model = MMEngineTeacher(source, allow_random=True).model
        assert model.state_dict().keys() == toy.build(config).state_dict().keys()
    package = MMEngineTeacher('mmdet::gfl/gfl_r50_fpn_1x_coco.py', allow_random=True)
    assert package.model.backbone.depth == 50


def test_model_alone_is_built_in_the_current_scope(toy: Toy) -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_model(toy.gfl()['model'])
    assert type(model).__module__.startswith('mmdet')


def test_a_config_stays_unchanged(toy: Toy) -> None:
    source = dict(toy.faster_rcnn(), model=Config(toy.faster_rcnn()).model)
    before = copy.deepcopy(source)
    build_model(source)
    # mmdet's detectors add keys to the configs of their heads.
    assert source == before


def test_a_config_can_be_built_twice() -> None:
    # The head of DETR writes the weights of its classes into the config of its loss.
    config = load_config('mmdet::detr/detr_r18_8xb2-500e_coco.py')
    before = copy.deepcopy(config.to_dict())
    for _ in range(2):
        build_model(config)
    assert config.to_dict() == before


def test_own_scope_wins_over_the_current_one(toy: Toy) -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_model(toy.segmentor())
    assert type(model.backbone).__module__.startswith('mmseg')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_of_the_checkpoint_are_loaded(
    toy: Toy, tmp_path: Path, suffix: str
) -> None:
    state = toy.build(toy.gfl()).state_dict()
    path = tmp_path / f'gfl{suffix}'
    if suffix == '.pth':
        torch.save(dict(state_dict=state, meta={}), path)
    else:
        safetensors.torch.save_file(state, path)
    loaded = MMEngineTeacher(toy.gfl(), str(path)).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_checkpoint_of_another_width_is_refused(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / 'wide.pth'
    torch.save(toy.build(toy.gfl(base=16)).state_dict(), path)
    with pytest.raises(ValueError, match=r'misshapen \(backbone.layer') as caught:
        MMEngineTeacher(toy.gfl(), str(path))
    assert 'wide.pth' in str(caught.value)
    assert 'does not fit GFL' in str(caught.value)


def test_checkpoint_of_another_task_is_refused(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / 'seg.pth'
    torch.save(toy.build(toy.segmentor()).state_dict(), path)
    with pytest.raises(ValueError, match=r'\d+ missing .*bbox_head') as caught:
        MMEngineTeacher(toy.gfl(), str(path))
    assert 'unexpected' in str(caught.value)


def test_misfit_names_file_and_config(toy: Toy, tmp_path: Path) -> None:
    """For a config in a dict, the error contains its config path."""
    path = tmp_path / 'wide.pth'
    torch.save(toy.build(toy.gfl(base=16)).state_dict(), path)
    lines = [f'{key} = {value!r}\n' for key, value in toy.gfl().items()]
    (tmp_path / 'gfl.py').write_text(''.join(lines))
    for config, named in (
        (toy.gfl(), 'of model.teacher.config:'),
        (str(tmp_path / 'gfl.py'), f"of '{tmp_path}/gfl.py':"),
    ):
        with pytest.raises(ValueError, match=r"wide\.pth' does not fit GFL") as caught:
            MMEngineTeacher(config, str(path))
        assert named in str(caught.value)


@pytest.mark.parametrize('prefix', ['module.', 'architecture.', 'module.student.'])
def test_weights_with_a_prefix_are_loaded(
    toy: Toy, tmp_path: Path, prefix: str
) -> None:
    state = toy.build(toy.gfl()).state_dict()
    path = tmp_path / 'gfl.pth'
    torch.save({prefix + key: value for key, value in state.items()}, path)
    loaded = MMEngineTeacher(toy.gfl(), str(path)).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_student_of_a_distillation_can_be_the_teacher(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    runner = make_runner(
        toy.distiller(toy.gfl()), train_cfg=dict(by_epoch=True, max_epochs=1)
    )
    runner.train()
    trained = runner.model.student.state_dict()
    model = MMEngineTeacher(toy.gfl(), str(tmp_path / 'epoch_1.pth')).model
    assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())


def test_classes_are_those_of_the_checkpoint(toy: Toy, tmp_path: Path) -> None:
    state = toy.build(toy.gfl()).state_dict()
    path = tmp_path / 'gfl.pth'
    for meta, names in ((dict(CLASSES=list('abc')), ('a', 'b', 'c')), ({}, None)):
        torch.save(dict(state_dict=state, meta=meta), path)
        teacher = MMEngineTeacher(toy.gfl(), str(path))
        assert teacher.classes == names
        assert teacher.moved(lambda tensor: tensor.double()).classes == names
    assert MMEngineTeacher(toy.gfl(), allow_random=True).classes is None


def test_config_that_inherits_in_place() -> None:
    change = dict(bbox_head=dict(num_classes=7))
    base = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
    model = MMEngineTeacher(dict(_base_=base, model=change), allow_random=True).model
    assert model.bbox_head.num_classes == 7


def test_missing_config_names_its_place() -> None:
    with pytest.raises(ValueError, match=r'^model\.teacher\.config: there is no file'):
        MMEngineTeacher('nowhere.py', allow_random=True)


@pytest.mark.parametrize(
    'source', [dict(cofnig='a.py'), dict(model=dict(depth=18)), {}]
)
def test_a_config_without_a_model_is_refused(source: dict) -> None:
    with pytest.raises(TypeError, match=r'^model\.student: expected a config with'):
        build_model(source)


def test_misspelt_argument_of_a_model(toy: Toy) -> None:
    config = toy.gfl()
    config['model']['bacbone'] = config['model'].pop('backbone')
    with pytest.raises(TypeError, match=r"^model\.student: GFL takes no 'bacbone'"):
        build_model(config)
    with pytest.raises(TypeError, match=r"^model\.teacher\.config.* needs 'backbone'"):
        MMEngineTeacher(config, allow_random=True)


def test_an_unknown_model_raises_the_error_of_its_registry(toy: Toy) -> None:
    config = toy.gfl()
    config['model']['type'] = 'GLF'
    with pytest.raises(KeyError, match='GLF is not in'):
        build_model(config)


def test_model_by_its_class(toy: Toy) -> None:
    from mmdet.models import GFL

    config = toy.gfl()
    config['model']['type'] = GFL
    assert isinstance(build_model(config), GFL)


def test_trust_pickle_reaches_the_loader(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / 'gfl.pth'
    state = toy.build(toy.gfl()).state_dict()
    torch.save(dict(state_dict=state, meta=SimpleNamespace(a=1)), path)
    with pytest.raises(ValueError, match='trust_pickle=True'):
        MMEngineTeacher(toy.gfl(), str(path))
    MMEngineTeacher(toy.gfl(), str(path), trust_pickle=True)


def test_the_teacher_is_frozen_and_records_without_gradient(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.gfl(), allow_random=True)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    records = teacher.observe({'fpn': 'neck'}, **batch(teacher, toy.det_data()))
    assert not teacher.model.training
    assert not any(tensor.requires_grad for tensor in records['fpn'])


NOISY = {
    'dropout': 'backbone',
    'swin': 'backbone.stages.1.blocks.0',
    'mit': 'backbone.layers.1.1.0',
}


def noisy(toy: Toy, kind: str) -> dict:
    """Return a segmentor with dropout, for transformers with DropPath too."""
    config = toy.segmentor()
    small = dict(embed_dims=8, drop_path_rate=0.5, drop_rate=0.3)
    if kind == 'swin':
        backbone = dict(
            type='SwinTransformer', depths=(1, 2), num_heads=(1, 2), window_size=4
        )
        backbone |= dict(small, embed_dims=16, strides=(4, 2), out_indices=(0, 1))
        widths = [16, 32]
    if kind == 'mit':
        backbone = dict(type='MixVisionTransformer', in_channels=3, num_stages=2)
        backbone |= dict(num_layers=[1, 2], num_heads=[1, 2], sr_ratios=[8, 4])
        backbone |= dict(small, patch_sizes=[7, 3], strides=[4, 2], out_indices=(0, 1))
        widths = [8, 16]
    if kind != 'dropout':
        del config['model']['auxiliary_head']
        head = config['model']['decode_head']
        head |= dict(in_channels=widths[1], in_index=1)
        config['model']['backbone'] = backbone
    return config


@pytest.mark.parametrize('kind', NOISY)
@pytest.mark.parametrize('of', ['', 'backbone', 'decode_head', 'within'])
def test_two_teacher_forwards_on_one_batch_agree(toy: Toy, kind: str, of: str) -> None:
    """This holds whichever part of the model was set to training in between."""
    teacher = MMEngineTeacher(noisy(toy, kind), allow_random=True)
    path = NOISY[kind] if of == 'within' else of
    inputs = batch(teacher, toy.seg_data())
    before = copy.deepcopy(teacher.model.state_dict())
    maps = []
    for _ in range(2):
        teacher.model.get_submodule(path).train()
        records = teacher.observe({'x': 'decode_head.conv_seg'}, **inputs)
        maps += records['x']
    assert torch.equal(*maps)
    after = teacher.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize('kind', NOISY)
def test_these_models_are_noisy_in_training(toy: Toy, kind: str) -> None:
    model = MMEngineTeacher(noisy(toy, kind), allow_random=True).model
    inputs = model.data_preprocessor(toy.seg_data(), training=True)
    for part in (model.backbone, model.decode_head)[kind == 'dropout' :]:
        model.eval()
        part.train()
        with torch.no_grad():
            maps = [model(**inputs, mode='tensor') for _ in range(2)]
        assert not torch.equal(*maps)


def test_a_deepcopy_shares_the_model(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.gfl(), allow_random=True)
    assert copy.deepcopy([teacher])[0] is teacher


def test_misspelt_recorder_names_its_config_path(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.gfl(), allow_random=True)
    with pytest.raises(ValueError, match=r'recorders\.teacher\.x.*bbox_head\.gfl_cls'):
        teacher.check({'x': 'bbox_head.gfl_clss'})


GFL_LOSSES = ('loss', 'predict', 'bbox_head.loss', 'bbox_head.predict_by_feat')
RPN_LOSSES = ('loss', 'predict', 'rpn_head.predict', 'roi_head.predict')
SEG_LOSSES = ('loss', 'predict', 'decode_head.loss', 'postprocess_result')


@pytest.mark.parametrize(
    ('model', 'source', 'shapes', 'forbidden'),
    [
        ('gfl', 'backbone', [8, 16, 32, 64], (*GFL_LOSSES, 'neck')),
        ('gfl', 'backbone.layer2', [16], (*GFL_LOSSES, 'backbone.layer3')),
        ('gfl', 'backbone.layer2.0.conv1', [16], (*GFL_LOSSES, 'backbone.layer3')),
        ('gfl', 'neck', [8] * 3, (*GFL_LOSSES, 'bbox_head')),
        ('gfl', 'neck.fpn_convs[-1]', [8], (*GFL_LOSSES, 'bbox_head')),
        ('gfl', 'neck.fpn_convs.*', [8] * 3, (*GFL_LOSSES, 'bbox_head')),
        ('gfl', 'bbox_head.gfl_cls', [3] * 3, GFL_LOSSES),
        ('gfl', 'bbox_head', [3] * 3 + [20] * 3, GFL_LOSSES),
        ('faster_rcnn', 'neck', [8] * 3, (*RPN_LOSSES, 'rpn_head')),
        ('faster_rcnn', 'rpn_head', [1] * 3 + [4] * 3, RPN_LOSSES),
        ('faster_rcnn', 'rpn_head.rpn_conv', [8] * 3, RPN_LOSSES),
        ('segmentor', 'backbone.layer2', [16], (*SEG_LOSSES, 'backbone.layer3')),
        ('segmentor', 'decode_head.conv_seg', [4], SEG_LOSSES),
        ('segmentor', 'decode_head', [4], SEG_LOSSES),
        ('segmentor', 'auxiliary_head.conv_seg', [4], (*SEG_LOSSES, 'decode_head')),
        ('segmentor', 'auxiliary_head', [4], SEG_LOSSES),
        ('segmentor', '*_head.conv_seg', [4, 4], SEG_LOSSES),
    ],
)
def test_records_no_deeper_than_needed(
    toy: Toy, model: str, source: str, shapes: list[int], forbidden: tuple
) -> None:
    teacher = MMEngineTeacher(getattr(toy, model)(), allow_random=True)
    make = toy.seg_data if model == 'segmentor' else toy.det_data
    inputs = batch(teacher, make())
    forbid(teacher.model, *forbidden)
    records = teacher.observe({'x': source}, **inputs)
    assert [tensor.shape[1] for tensor in records['x']] == shapes
    assert {len(tensor) for tensor in records['x']} == {2}


def test_record_equals_the_plain_forward(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.segmentor(), allow_random=True)
    inputs = batch(teacher, toy.seg_data())
    [logits] = teacher.observe({'x': 'decode_head.conv_seg'}, **inputs)['x']
    with torch.no_grad():
        assert torch.equal(logits, teacher.model(**inputs, mode='tensor'))


def test_records_of_several_parts_together(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.segmentor(), allow_random=True)
    recorders = dict(
        a='backbone.layer1', b='decode_head.conv_seg', c='auxiliary_head.conv_seg'
    )
    records = teacher.observe(recorders, **batch(teacher, toy.seg_data()))
    assert [len(records[name]) for name in 'abc'] == [1, 1, 1]


def test_record_within_the_roi_head(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.faster_rcnn(), allow_random=True)
    inputs = batch(teacher, toy.det_data())
    records = teacher.observe({'x': 'roi_head.bbox_head.fc_cls'}, **inputs)
    assert records['x'][0].shape[1] == 4


def test_recording_the_roi_head_itself_raises_a_clear_error(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.faster_rcnn(), allow_random=True)
    inputs = batch(teacher, toy.det_data())
    with pytest.raises(ValueError, match=r"teacher\.x: 'roi_head' was not called"):
        teacher.observe({'x': 'roi_head'}, **inputs)


def test_list_of_auxiliary_heads(toy: Toy) -> None:
    # As in UPerNet variants, BiSeNet and ICNet.
    config = toy.segmentor()
    config['model']['auxiliary_head'] = [config['model']['auxiliary_head']] * 2
    teacher = MMEngineTeacher(config, allow_random=True)
    inputs = batch(teacher, toy.seg_data())
    for source in ('auxiliary_head.1.conv_seg', 'auxiliary_head[1].conv_seg'):
        [logits] = teacher.observe({'x': source}, **inputs)['x']
        assert logits.shape[1] == 4


def test_cascaded_decode_heads(toy: Toy) -> None:
    config = toy.segmentor()
    norm, loss = dict(type='BN'), dict(type='CrossEntropyLoss')
    head = dict(channels=8, num_classes=4, norm_cfg=norm, loss_decode=loss)
    head |= dict(in_channels=64, in_index=3)
    ocr = dict(type='OCRHead', ocr_channels=8, **head)
    heads = [dict(type='FCNHead', num_convs=1, **head), ocr]
    config['model'] |= dict(
        type='CascadeEncoderDecoder', num_stages=2, decode_head=heads
    )
    del config['model']['auxiliary_head']
    teacher = MMEngineTeacher(config, allow_random=True)
    inputs = batch(teacher, toy.seg_data())
    for source in ('decode_head.0.conv_seg', 'decode_head[-1].conv_seg'):
        [logits] = teacher.observe({'x': source}, **inputs)['x']
        assert logits.shape[:2] == (2, 4)


def test_observe_draws_no_random_numbers(toy: Toy) -> None:
    teacher = MMEngineTeacher(toy.segmentor(), allow_random=True)
    inputs = batch(teacher, toy.seg_data())
    before = torch.random.get_rng_state()
    teacher.observe({'x': 'decode_head'}, **inputs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_checkpoint_of_a_runner_can_be_the_teacher(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    runner = make_runner(
        toy.gfl()['model'], train_cfg=dict(by_epoch=True, max_epochs=1)
    )
    runner.train()
    model = MMEngineTeacher(toy.gfl(), str(tmp_path / 'epoch_1.pth')).model
    trained = runner.model.state_dict()
    assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('part', 'told'),
    [
        (('neck', dict(num_otus=3)), r"neck: .*'num_otus' \(did you mean 'num_outs'"),
        (
            ('bbox_head', dict(loss_cls=dict(type='FocalLoss', gama=2.0))),
            r"bbox_head\.loss_cls: .*'gama' \(did you mean 'gamma'",
        ),
        (
            ('bbox_head', dict(anchor_generator=dict(type='AnchorGenerator', a=1))),
            r"bbox_head\.anchor_generator: AnchorGenerator.*'a'",
        ),
    ],
)
def test_misspelt_key_of_a_part_is_named_with_its_place(
    toy: SimpleNamespace, part: tuple[str, dict], told: str
) -> None:
    config = toy.gfl()
    config['model'][part[0]] |= part[1]
    with pytest.raises(TypeError, match=r'^model\.student\.' + told):
        build_model(config)
    with pytest.raises(TypeError, match=r'^model\.teacher\.config\.' + told):
        MMEngineTeacher(config, allow_random=True)
