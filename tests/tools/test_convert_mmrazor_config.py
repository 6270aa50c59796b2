"""Configs in the format of mmrazor, converted and trained for a step."""

import contextlib
import io
import os
import pprint
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional

from kdtoolbox.configuration import load_config
from kdtoolbox.distillers.observing import Step
from kdtoolbox.teachers.models import build_model

Toy = SimpleNamespace
ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/convert_mmrazor_config.py'
CWD = dict(type='ChannelWiseDivergence', tau=2, loss_weight=3)


def record(student: bool, recorder: str, **more: Any) -> dict:
    return dict(from_student=student, recorder=recorder, **more)


def both(recorder: str, **more: Any) -> dict:
    return dict(
        preds_S=record(True, recorder, **more), preds_T=record(False, recorder, **more)
    )


def outputs(source: str) -> dict:
    return dict(type='ModuleOutputs', source=source)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Write a config of mmrazor around two small models, and return its path."""

    def write(
        student: dict, source: str, losses: dict, mappings: dict, **more: Any
    ) -> Path:
        torch.manual_seed(0)
        teacher = build_model(student)
        torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
        (tmp_path / 'teacher.py').write_text(
            f'model = {pprint.pformat(student["model"])}\n'
            f'default_scope = {student["default_scope"]!r}\n'
        )
        distiller = dict(
            type='ConfigurableDistiller',
            student_recorders=dict(a=outputs(source)),
            teacher_recorders=dict(a=outputs(source)),
            distill_losses=losses,
            loss_forward_mappings=mappings,
        )
        model = dict(
            _scope_='mmrazor',
            type=more.pop('type', 'SingleTeacherDistill'),
            architecture=student['model'],
            teacher=dict(cfg_path=str(tmp_path / 'teacher.py'), pretrained=False),
            teacher_ckpt=str(tmp_path / 'teacher.pth'),
            distiller=distiller | more.pop('distiller', {}),
        )
        model |= more.pop('model', {})
        library = student['default_scope']
        lines = [
            f"_base_ = '{library}::_base_/default_runtime.py'",
            f'model = {pprint.pformat(model)}',
            "val_cfg = dict(type='mmrazor.SingleTeacherDistillValLoop')",
            *(f'{key} = {value!r}' for key, value in more.items()),
        ]
        path = tmp_path / 'razor.py'
        path.write_text('\n'.join(lines))
        return path

    return write


def convert(source: Path, *options: str) -> Path:
    out = source.with_name('ours.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOL.parent))
        patch.setattr(sys, 'argv', ['convert', str(source), str(out), *options])
        with contextlib.redirect_stderr(io.StringIO()) as told:
            try:
                runpy.run_path(str(TOOL), run_name='__main__')
            except SystemExit as ended:
                # As the tool reports it; other tests ask for the exit status.
                raise ValueError(told.getvalue()) from ended
    return out


def step_of(recipe: Path, data: dict) -> tuple[dict[str, torch.Tensor], Step]:
    """Train the model of a recipe for a step; return the losses and what was seen."""
    cfg = load_config(recipe)
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    steps: list[Step] = []
    model.observers.append(steps.append)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [weight.clone() for weight in model.student.parameters()]
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    sum(value for name, value in losses.items() if 'loss_kd' in name).backward()
    optimizer.step()
    after = model.student.parameters()
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    return losses, steps[0]


def divergence(student: torch.Tensor, teacher: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum the divergence of softmaxes over an axis, at a temperature of 2."""
    pair = [(x / 2).log_softmax(axis) for x in (student, teacher)]
    return 4 * functional.kl_div(*pair, reduction='sum', log_target=True)


def test_losses_on_levels_of_a_neck(make: Any, toy: Toy) -> None:
    source = make(
        toy.gfl(),
        'neck',
        dict(loss_kd0=CWD, loss_kd2=dict(type='PKDLoss', loss_weight=6)),
        dict(loss_kd0=both('a', data_idx=0), loss_kd2=both('a', data_idx=2)),
        type='FpnTeacherDistill',
        find_unused_parameters=True,
        teacher_ckpt='a variable',
    )
    # A child changes one number, as the recipes of one family do.
    child = source.with_name('child.py')
    child.write_text(
        "_base_ = './razor.py'\n"
        'model = dict(distiller=dict(distill_losses=dict(loss_kd2=dict('
        'loss_weight=10))))\n'
    )
    recipe = convert(child)
    cfg = load_config(recipe)
    assert cfg.val_cfg == dict(type='ValLoop')
    assert cfg.find_unused_parameters
    assert 'teacher_ckpt' not in cfg
    assert "_base_ = ['mmdet::_base_/default_runtime.py']" in recipe.read_text()
    assert 'default_hooks' not in recipe.read_text()
    losses, step = step_of(recipe, toy.det_data())
    [student], [teacher] = (step.wires[f'{s}_a_0'] for s in ('student', 'teacher'))
    assert student.shape[-1] == 8
    maps = [x.flatten(0, 1).flatten(1) for x in (student, teacher)]
    expected = 3 * divergence(*maps, axis=1) / len(maps[0])
    assert losses['loss_kd0'].item() == pytest.approx(expected.item(), rel=1e-4)
    [student], [teacher] = (step.wires[f'{s}_a_2'] for s in ('student', 'teacher'))
    shift = [
        (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
        for x in (student, teacher)
    ]
    expected = 10 * functional.mse_loss(*shift) / 2
    assert losses['loss_kd2'].item() == pytest.approx(expected.item(), rel=1e-3)


def test_calls_of_one_module(make: Any, toy: Toy) -> None:
    source = make(
        toy.gfl(),
        'bbox_head.gfl_cls',
        dict(loss_kd0=CWD, loss_kd1=CWD),
        dict(loss_kd0=both('a'), loss_kd1=both('a', record_idx=1)),
    )
    losses, step = step_of(convert(source), toy.det_data())
    # mmrazor takes the first call where record_idx is missing.
    for call, name in enumerate(('loss_kd0', 'loss_kd1')):
        pair = (step.wires[f'{side}.a'][call] for side in ('student', 'teacher'))
        maps = [x.flatten(0, 1).flatten(1) for x in pair]
        expected = 3 * divergence(*maps, axis=1) / len(maps[0])
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-4)


def test_logits_of_pixels(make: Any, toy: Toy) -> None:
    kl = dict(type='KLDivergence', tau=2, loss_weight=0.5)
    source = make(
        toy.segmentor(),
        'decode_head.conv_seg',
        dict(loss_kd=kl),
        dict(loss_kd=both('a')),
    )
    with pytest.raises(ValueError, match='KLDivergence sums .* Add --map-size H W'):
        convert(source)
    losses, step = step_of(convert(source, '--map-size', '2', '2'), toy.seg_data())
    [student], [teacher] = (step.wires[f'{s}.a'] for s in ('student', 'teacher'))
    assert student.shape == (2, 4, 2, 2)
    # Its `batchmean` divides by the number of images alone.
    expected = 0.5 * divergence(student, teacher, axis=1) / 2
    assert losses['loss_kd'].item() == pytest.approx(expected.item(), rel=1e-4)


def test_connectors(make: Any, toy: Toy) -> None:
    norm = dict(type='BN', affine=False, track_running_stats=False)
    conv = dict(type='ConvModuleConncetor', in_channel=8, out_channel=8, act_cfg=None)
    mgd = dict(type='MGDConncetor', student_channels=8, teacher_channels=6)
    aligned = dict(type='ConvModuleConnector', in_channel=8, out_channel=6, bias=False)
    mappings = dict(
        loss_kd0=dict(
            preds_S=record(True, 'a', data_idx=0, connector='conv'),
            preds_T=record(False, 'a', data_idx=0, connector='norm'),
        ),
        loss_kd1=dict(
            preds_S=record(True, 'a', data_idx=1, connector='mgd'),
            preds_T=record(False, 'a', data_idx=1, connector='slim'),
        ),
        loss_kd2=dict(
            s_feature=record(True, 'a', data_idx=2),
            t_feature=record(False, 'a', data_idx=2),
        ),
    )
    connectors = dict(
        conv=dict(conv, norm_cfg=norm),
        norm=dict(type='NormConnector', in_channels=8, norm_cfg=norm),
        mgd=mgd,
        slim=aligned,
    )
    source = make(
        toy.gfl(),
        'neck',
        dict(
            loss_kd0=CWD,
            loss_kd1=dict(type='MGDLoss', alpha_mgd=0.5),
            loss_kd2=dict(type='ATLoss'),
        ),
        mappings,
        distiller=dict(connectors=connectors),
    )
    recipe = convert(source)
    model = load_config(recipe).model
    assert model.connectors.mgd == dict(
        type='MGDConnector',
        input='mgd_align',
        channels=6,
        mask_ratio=0.65,
        num_levels=1,
    )
    # mmrazor's default activation is not ours.
    assert model.connectors.slim.act_cfg == dict(type='ReLU')
    assert model.losses.loss_kd2.loss_weight == 1
    losses, step = step_of(recipe, toy.det_data())
    [student], [teacher] = step.wires['mgd'], step.wires['slim']
    expected = 0.5 * functional.mse_loss(student, teacher, reduction='sum') / 2
    assert losses['loss_kd1'].item() == pytest.approx(expected.item(), rel=1e-4)
    [teacher] = step.wires['norm']
    assert teacher.mean((0, 2, 3)).abs().max() < 1e-5


CASES = {
    'algorithm': (dict(type='SelfDistill'), 'SelfDistill has no equal'),
    'deliveries': (
        dict(distiller=dict(distill_deliveries=dict(a=dict(type='MethodOutputs')))),
        'distill_deliveries has no equal',
    ),
    'distiller': (
        dict(distiller=dict(type='OFDDistiller')),
        'OFDDistiller has no equal, only ConfigurableDistiller',
    ),
    'recorder': (
        dict(
            distiller=dict(
                student_recorders=dict(a=dict(type='ParameterRecorder', source='b'))
            )
        ),
        'student_recorders.a: ParameterRecorder has no equal.*ClassifierWeights',
    ),
    'both indices': (
        dict(mapping=both('a', data_idx=1, record_idx=1)),
        'record_idx=1 and data_idx=1 together have no equal',
    ),
    'a trained teacher': (
        dict(model=dict(teacher_trainable=True)),
        'model.teacher_trainable=True has no equal',
    ),
    'a loss': (dict(loss=dict(type='FBKDLoss')), 'FBKDLoss has no equal.*configs/fbkd'),
    'an unknown loss': (dict(loss=dict(type='MyLoss')), 'MyLoss.*docs/mmrazor.md'),
    'an argument': (
        dict(loss=dict(type='PKDLoss', resize_stu=False)),
        'resize_stu=False has no equal: PKDLoss does what .* resize_stu=True',
    ),
    'an unknown argument': (
        dict(loss=dict(type='PKDLoss', weight=1)),
        "PKDLoss takes no 'weight'",
    ),
    'a kernel': (
        dict(
            mapping=dict(
                preds_S=record(True, 'a', data_idx=0, connector='c'),
                preds_T=record(False, 'a', data_idx=0),
            ),
            distiller=dict(
                connectors=dict(
                    c=dict(type='ConvModuleConnector', in_channel=8, kernel_size=3)
                )
            ),
        ),
        'padding=0 has no equal.*padding=1',
    ),
    'a connector for two': (
        dict(
            mapping=both('a', data_idx=0, connector='c'),
            distiller=dict(
                connectors=dict(
                    c=dict(type='ConvModuleConnector', in_channel=8, out_channel=8)
                )
            ),
        ),
        "connectors: 'c' would read two records",
    ),
    'a record that is missing': (
        dict(mapping=both('b')),
        "loss_forward_mappings.loss_kd: there is no recorder 'b' of the student",
    ),
    'a mapping that is missing': (
        dict(distiller=dict(distill_losses={})),
        "'loss_kd' is in one of distill_losses and loss_forward_mappings",
    ),
    'no scope': (dict(default_scope='mmrazor'), "write 'mmdet' or 'mmseg'"),
    'a hook': (
        dict(custom_hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=9)]),
        r"custom_hooks\[0\].type: 'mmrazor.StopDistillHook' has no equal",
    ),
    'a published student': (
        dict(
            model=dict(
                architecture=dict(
                    cfg_path='mmdet::gfl/gfl_r50_fpn_1x_coco.py', pretrained=True
                )
            )
        ),
        'pretrained=True starts from the published student.*load_from',
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_has_no_equal_is_named(name: str, make: Any, toy: Toy) -> None:
    changes, message = CASES[name]
    changes = dict(changes)
    losses = dict(loss_kd=changes.pop('loss', CWD))
    mappings = dict(loss_kd=changes.pop('mapping', both('a', data_idx=0)))
    source = make(toy.gfl(), 'neck', losses, mappings, **changes)
    with pytest.raises(ValueError, match=message):
        convert(source)
    assert not source.with_name('ours.py').exists()


@pytest.mark.e2e
def test_from_another_folder(make: Any, toy: Toy, tmp_path: Path) -> None:
    mappings = dict(loss_kd=both('a', data_idx=0))
    source = make(toy.gfl(), 'neck', dict(loss_kd=CWD), mappings)
    command = [sys.executable, str(TOOL), source.name, 'ours.py']
    for again in (False, True):
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            capture_output=True,
            text=True,
        )
        assert (result.returncode != 0) == again, result.stderr[-4000:]
    assert 'ours.py exists; name another file or add --over' in result.stderr
    losses, _ = step_of(tmp_path / 'ours.py', toy.det_data())
    assert losses['loss_kd'] > 0
