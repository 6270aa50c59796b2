import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from kdtoolbox.distillers.finite import NonFiniteError, check_finite, finite_step

ROOT = Path(__file__).parents[2]
Toy = SimpleNamespace
NAN, INF = float('nan'), float('inf')
# For each task: the record, its number of levels, and the module of level 1.
LEVELS = dict(
    det=('neck', 3, 'neck.fpn_convs.1'),
    seg=('decode_head.psp_modules.*', 2, 'decode_head.psp_modules.1'),
)
TASKS = pytest.mark.parametrize('task', LEVELS)
WHERE = dict(
    image='the images of the batch: 1 Inf among 24576 values, in image 1 (None)',
    teacher='model.recorders.teacher.maps, level 1: ',
    student='model.recorders.student.maps, level 1: ',
    connector='model.connectors.aligned, level 1: ',
    loss='model.losses.loss_vid, level 1: NaN.',
)


def build(toy: Toy, task: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    path, levels, _ = LEVELS[task]
    channels = dict(in_channels=[8] * levels, out_channels=8)
    loss = dict(type='VIDLoss', channels=8, num_levels=levels)
    arguments: dict[str, Any] = dict(
        recorders=dict.fromkeys(('student', 'teacher'), dict(maps=path)),
        connectors=dict(
            aligned=dict(type='ConvConnector', input='student.maps', **channels)
        ),
        losses=dict(loss_vid=dict(loss, student='aligned', teacher='teacher.maps')),
    )
    config = toy.gfl() if task == 'det' else toy.segmentor()
    return toy.build_distiller(config, **(arguments | changes)).train()


def data_of(toy: Toy, task: str) -> dict:
    return toy.det_data() if task == 'det' else toy.seg_data()


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def poison(model: Any, data: dict, kind: str, task: str) -> None:
    if kind == 'image':
        data['inputs'] = [image.float() for image in data['inputs']]
        data['inputs'][1][0, 3, 3] = INF
        return
    parts = dict(
        teacher=model.teacher.model.get_submodule(LEVELS[task][2]),
        student=model.student.get_submodule(LEVELS[task][2]),
        connector=model.connectors['aligned'].convs[1],
        loss=model.losses['loss_vid'],
    )
    # For a parameter of a loss only the second level; for a convolution one channel.
    weight = next(parts[kind].parameters()).data
    weight[1] = NAN


def train(model: Any, data: dict) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    return model.train_step(data, OptimWrapper(optimizer))


@TASKS
@pytest.mark.parametrize('kind', WHERE)
def test_a_nan_is_reported_by_wire_and_level_and_loss_before_the_weights_change(
    toy: Toy, kind: str, task: str
) -> None:
    model, data = build(toy, task), data_of(toy, task)
    poison(model, data, kind, task)
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(NonFiniteError) as caught:
        train(model, data)
    message, _, others = str(caught.value).partition(' Not finite either: ')
    assert message.startswith(WHERE[kind])
    assert 'No weight has moved in this step; ' in message
    assert kind == 'loss' or 'model.losses.loss_vid, level' in others
    # Only a broken image affects the other levels.
    assert kind == 'image' or 'level 0' not in others.replace("the student's own", '')
    assert ('model.connectors.aligned' in others) is (kind in ('image', 'student'))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(
            parameter, before[name], rtol=0, atol=0, equal_nan=True
        )


@TASKS
def test_finite_training_and_validation_steps_pass(toy: Toy, task: str) -> None:
    model = build(toy, task)
    assert train(model, data_of(toy, task))['loss'].isfinite()
    with torch.no_grad():
        loss_of(model, data_of(toy, task))
    poison(model, {}, 'student', task)
    with torch.no_grad(), pytest.raises(NonFiniteError, match=r'student\.maps'):
        loss_of(model, data_of(toy, task))


@pytest.mark.parametrize('kind', ['image', 'student', 'connector'])
def test_a_step_with_all_weights_0_is_checked(toy: Toy, kind: str) -> None:
    model, data = build(toy, 'det'), toy.det_data()
    model.losses['loss_vid'].loss_weight = 0.0
    poison(model, data, kind, 'det')
    # There are no wires, only the student's losses and the zeros for DDP.
    where = dict(image='the images', student="the student's own loss_cls, level 1: NaN")
    with pytest.raises(NonFiniteError) as caught:
        loss_of(model, data)
    assert str(caught.value).startswith(where.get(kind, 'model.losses.loss_vid: NaN'))


def test_the_report_replaces_an_error_that_a_nan_causes(toy: Toy) -> None:
    """An error of DETR's matcher, for one, does not name the origin of the NaN."""
    model, data = build(toy, 'det'), toy.det_data()
    assigner = model.student.bbox_head.assigner

    def stumble(*args: Any, **kwargs: Any) -> None:
        raise ValueError('matrix contains invalid numeric entries')

    assigner.assign = stumble
    with pytest.raises(ValueError, match='invalid numeric') as plain:
        loss_of(model, data)
    assert not isinstance(plain.value, NonFiniteError)
    poison(model, data, 'student', 'det')
    with pytest.raises(NonFiniteError, match=r'student\.maps, level 1') as caught:
        loss_of(model, data)
    assert 'invalid numeric' in str(caught.value.__context__)
    poison(model, data, 'image', 'det')
    with pytest.raises(NonFiniteError, match='the images'):
        loss_of(model, data)


def test_a_term_of_a_loss_is_named(toy: Toy) -> None:
    class Terms(nn.Module):
        loss_weight = 1.0

        def forward(self, student: Tensor, teacher: Tensor, level: int) -> dict:
            value = student.square().mean()
            return dict(fg=value, bg=value / (level - 2))

    model = build(toy, 'det')
    model.losses['loss_vid'] = Terms()
    with pytest.raises(
        NonFiniteError, match=r'^model\.losses\.loss_vid\.bg, level 2: '
    ):
        loss_of(model, toy.det_data())


def test_wires_of_sources_are_named(toy: Toy) -> None:
    cls = dict(student='student.roi_cls', teacher='teacher.roi_cls')
    config = toy.distiller(toy.faster_rcnn())
    config |= dict(
        sources=[dict(type='RoIResponses')],
        losses=dict(loss_kd=dict(cls, type='KDLoss')),
    )
    del config['recorders']
    for side, message in (
        ('teacher', 'wire teacher.roi_cls, level 0: .* checkpoint .* of model.teacher'),
        ('student', 'wire student.roi_cls, level 0: .* learning rate'),
    ):
        model = toy.build(dict(model=config, default_scope='mmdet'))
        heads = dict(
            teacher=model.teacher.model.roi_head, student=model.student.roi_head
        )
        heads[side].bbox_head.fc_cls.bias.data[0] = NAN
        with pytest.raises(NonFiniteError, match=f'^{message}'):
            loss_of(model, toy.det_data())


def test_the_token_trainer_checks_its_tensors(toy: Toy) -> None:
    config = dict(type='kdtoolbox.TokenTrainer', channels=8, num_levels=3)
    config |= dict(teacher=dict(config=toy.gfl(), allow_random=True), num_tokens=4)
    model = toy.build(dict(model=config, default_scope='mmdet'))
    loss_of(model, toy.det_data())
    model.tokens.vectors.data[1] = NAN
    with pytest.raises(NonFiniteError, match='^the masks of the tokens, level 1: '):
        loss_of(model, toy.det_data())
    model.teacher.model.neck.fpn_convs[1].conv.weight.data[:] = NAN
    with pytest.raises(NonFiniteError, match="^model.source 'neck', level 1: "):
        loss_of(model, toy.det_data())


def test_a_gradient_that_overflows_is_left_to_the_scaler(toy: Toy) -> None:
    model, data = build(toy, 'det'), toy.det_data()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**126)
    total, _ = model.parse_losses(loss_of(model, data))
    scaler.scale(total).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**125
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


# The check without a model.


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_one_value_of_any_type_is_found(dtype: torch.dtype, value: float) -> None:
    # The sum of these values is Inf in float16.
    maps = torch.full((2, 3, 40, 40), 6e4, dtype=dtype)
    seen = dict(a=[torch.ones(2), maps], b=torch.ones(()), c=torch.ones(2).long())
    check_finite(seen, [])
    maps[1, 2, 3, 4] = value
    what = 'NaN' if value != value else 'Inf'
    with pytest.raises(
        NonFiniteError, match=f'^a, level 1: 1 {what} among 9600 values'
    ):
        check_finite(seen, [])


def test_finite_extremes_empty_and_foreign_values_pass() -> None:
    largest = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    check_finite(dict(a=[largest, torch.zeros(0, 4)], b=3.0, c=[None]), [])
    check_finite({}, [])


def test_the_check_synchronises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = Tensor.__bool__
    monkeypatch.setattr(Tensor, '__bool__', lambda x: reads.append(x) or read(x))
    maps = torch.ones(2, 3)
    types = [maps.half(), maps, maps.double()]
    with finite_step([]) as seen:
        seen |= dict(a=types, b=[*types, maps], c=torch.ones(()))
    assert len(reads) == 1


def test_no_number_and_no_graph_changes(toy: Toy) -> None:
    model = build(toy, 'det')
    losses = loss_of(model, toy.det_data())
    maps = torch.ones(2, requires_grad=True)
    with finite_step([]) as seen:
        seen['a'] = [maps * 1]
    assert maps.grad is None
    assert losses['loss_vid'].grad_fn is not None


def test_weights_not_finite_before_the_step_are_named(toy: Toy) -> None:
    """Without the hook a step changes the weights, and the next step raises."""
    model, data = build(toy, 'det'), toy.det_data()
    poison(model, data, 'student', 'det')
    with pytest.raises(NonFiniteError) as caught:
        train(model, data)
    expected = '. Not finite before this step: student.neck.fpn_convs.1.conv.weight'
    assert str(caught.value).endswith(expected)
    assert caught.value.report['message'] == str(caught.value)
    model, data = build(toy, 'det'), toy.det_data()
    poison(model, data, 'image', 'det')
    with pytest.raises(NonFiniteError) as caught:
        train(model, data)
    assert 'before this step' not in str(caught.value)


def test_the_report_is_plain_json_and_survives_a_pickle(tmp_path: Path) -> None:
    meta = dict(img_path='a/b.jpg', img_id=7, ori_shape=(4, 5), flip=True)
    meta |= dict(homography_matrix=np.eye(2), scale=torch.tensor([2.0]), other={3: int})
    sample = SimpleNamespace(metainfo=meta, gt_instances=[0, 0])
    maps = torch.tensor([[NAN, INF, -2.0, 3.0]] * 2).reshape(2, 1, 2, 2)
    with pytest.raises(NonFiniteError) as caught:
        check_finite(dict(a=[maps]), [SimpleNamespace(), sample])
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert '2 NaN and 2 Inf among 8 values, in image 0 (None), 1 (a/b.jpg)' in str(
        error
    )
    error.write(tmp_path, 12)
    [path] = tmp_path.iterdir()
    assert path.name == 'nonfinite_iter_12_rank_0.json'
    assert str(error).endswith(str(path))
    report = json.loads(path.read_text())
    assert report == error.report
    [tensor] = report['tensors']
    counts = dict(nan=2, inf=2, min=-2.0, max=3.0, images=[0, 1])
    expected = dict(name='a, level 0', shape=[2, 1, 2, 2], dtype='torch.float32')
    assert tensor == expected | counts
    assert report['samples'][0] == {}
    assert report['samples'][1].pop('other') == {'3': "<class 'int'>"}
    expected = dict(img_path='a/b.jpg', img_id=7, ori_shape=[4, 5], flip=True)
    expected |= dict(homography_matrix=[[1, 0], [0, 1]], scale=[2.0], num_boxes=2)
    assert report['samples'][1] == expected


@pytest.mark.e2e
def test_the_batch_of_a_nan_is_written_to_a_report(tmp_path: Path) -> None:
    from kdtoolbox.datasets import PRESETS, make_digit_scenes

    make_digit_scenes(tmp_path / 'data', PRESETS['det'], train=4, val=1, workers=1)
    config = tmp_path / 'diverging.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/det_distilled.py'\n"
        f"root = dict(data_root='{tmp_path}/data/')\n"
        'train_dataloader = dict(batch_size=2, num_workers=0, dataset=root,\n'
        '    persistent_workers=False)\n'
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_cfg = dict(max_iters=4, val_interval=9)\n'
        'optim_wrapper = dict(optimizer=dict(lr=1e30), clip_grad=None)\n'
    )
    command = [sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / 'run']
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [path] = (tmp_path / 'run').glob('nonfinite*')
    assert path.name == 'nonfinite_iter_2_rank_0.json'
    assert done.stderr.rstrip().endswith(f'The batch and all ranges are in {path}')
    assert 'NonFiniteError: model.recorders.student.' in done.stderr
    report = json.loads(path.read_text())
    assert len(report['samples']) == 2
    for sample in report['samples']:
        assert Path(sample['img_path']).is_file()
        assert sample['num_boxes'] > 0
        assert {'img_id', 'ori_shape', 'img_shape', 'scale_factor'} <= sample.keys()
    names = [tensor['name'] for tensor in report['tensors'] if not tensor['nan']]
    assert 'the images of the batch' in names
    assert any(name.startswith('model.recorders.teacher') for name in names)
