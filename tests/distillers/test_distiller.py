import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from kdtoolbox.distillers import Distiller

Toy = SimpleNamespace
CWD = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
ALIGNED = dict(type='ConvConnector', input='student.fpn')
TASKS = pytest.mark.parametrize('task', ['det', 'seg'])


def model_of(toy: Toy, task: str) -> dict:
    return toy.gfl() if task == 'det' else toy.segmentor()


def data_of(toy: Toy, task: str, seed: int = 0) -> dict:
    make = toy.det_data if task == 'det' else toy.seg_data
    return make(seed=seed)


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def state_of(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


def assert_equal(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    different = [key for key in expected if not torch.equal(state[key], expected[key])]
    assert not different


def seeded(build: Callable[..., Any], *args: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = build(*args, **changes)
    model.init_weights()
    return model


def train(model: Any, data: Callable[[int], dict], steps: int = 3) -> list[dict]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    optim_wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=0.5))
    model.train()
    return [model.train_step(data(step), optim_wrapper) for step in range(steps)]


def wide(toy: Toy) -> dict:
    """Changes of a distiller's config for a wider teacher and a connector."""
    teacher = dict(config=toy.gfl(base=16, out=16), allow_random=True)
    aligned = dict(ALIGNED, in_channels=8, out_channels=16)
    loss = dict(CWD, student='aligned')
    return dict(
        teacher=teacher, connectors=dict(aligned=aligned), losses=dict(loss_cwd=loss)
    )


# The student behaves as without distillation.


@TASKS
@pytest.mark.parametrize('mode', ['predict', 'tensor'])
def test_outputs_equal_the_plain_students(toy: Toy, task: str, mode: str) -> None:
    plain = toy.build(model_of(toy, task)).eval()
    distiller = toy.build_distiller(model_of(toy, task)).eval()
    distiller.student.load_state_dict(plain.state_dict())
    with torch.no_grad():
        answers = []
        for model in (plain, distiller):
            sizes = ((64, 64), (64, 64))
            make = toy.det_data if task == 'det' else toy.seg_data
            batch = model.data_preprocessor(make(sizes), training=False)
            answers.append(model(**batch, mode=mode))
    expected, answer = (list(flatten(value)) for value in answers)
    assert len(answer) == len(expected) > 0
    assert all(map(torch.equal, answer, expected))


def flatten(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    elif 'pred_instances' in value:
        yield from (v for _, v in value.pred_instances.items())
    else:
        yield value.seg_logits.data
        yield value.pred_sem_seg.data


def test_val_step_is_the_plain_students(toy: Toy) -> None:
    plain = toy.build(toy.gfl()).eval()
    distiller = toy.build_distiller(toy.gfl()).eval()
    distiller.student.load_state_dict(plain.state_dict())
    with torch.no_grad():
        results = [model.val_step(toy.det_data()) for model in (plain, distiller)]
    for expected, result in zip(*results, strict=True):
        expected, result = expected.pred_instances, result.pred_instances
        assert torch.equal(expected.bboxes, result.bboxes)
        assert torch.equal(expected.scores, result.scores)


@TASKS
def test_same_seed_gives_the_student_the_same_weights(toy: Toy, task: str) -> None:
    config = model_of(toy, task)
    plain = seeded(toy.build, config)
    # Later random numbers, such as the data order, must not change either.
    expected = torch.rand(4)
    distiller = seeded(toy.build_distiller, config)
    assert torch.equal(torch.rand(4), expected)
    assert_equal(distiller.student.state_dict(), plain.state_dict())


@TASKS
def test_step_with_all_weights_0_is_the_plain_students(toy: Toy, task: str) -> None:
    config = model_of(toy, task)
    plain = seeded(toy.build, config)
    losses = dict(loss_cwd=dict(CWD, loss_weight=0.0))
    distiller = seeded(toy.build_distiller, config, losses=losses)
    distiller.teacher.model.backbone.register_forward_pre_hook(never)
    logs = []
    for model in (plain, distiller):
        torch.manual_seed(1)
        logs.append(train(model, lambda step: data_of(toy, task, seed=step)))
    assert_equal(distiller.student.state_dict(), plain.state_dict())
    for expected, log in zip(*logs, strict=True):
        assert log['loss'] == expected['loss']
        assert set(log) == {*expected, 'loss_cwd'}


def never(*_: Any) -> None:
    raise AssertionError('this module must not run')


@TASKS
def test_the_teacher_does_not_change_the_task_losses(toy: Toy, task: str) -> None:
    config = model_of(toy, task)
    plain = seeded(toy.build, config)
    distiller = seeded(toy.build_distiller, config)
    losses = []
    for model in (plain, distiller):
        torch.manual_seed(1)
        losses.append(loss_of(model, data_of(toy, task)))
    expected, found = losses
    assert found.keys() == {*expected, 'loss_cwd'}
    for name, value in expected.items():
        assert all(map(torch.equal, flatten([found[name]]), flatten([value])))


def test_distillation_changes_the_student(toy: Toy) -> None:
    config = toy.gfl()
    states = []
    for weight in (0.0, 100.0):
        losses = dict(loss_cwd=dict(CWD, loss_weight=weight))
        distiller = seeded(toy.build_distiller, config, losses=losses)
        train(distiller, lambda step: toy.det_data(seed=step), steps=1)
        states.append(distiller.student.neck.state_dict())
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_distillation_loss_falls(toy: Toy) -> None:
    losses = dict(loss_cwd=dict(CWD, loss_weight=10.0))
    distiller = seeded(toy.build_distiller, toy.gfl(), losses=losses)
    logs = train(distiller, lambda _: toy.det_data(), steps=8)
    assert logs[-1]['loss_cwd'] < 0.8 * logs[0]['loss_cwd']


# The teacher is no part of checkpoints, optimizers, EMA and DDP.


def test_the_teacher_is_absent_from_state_dict_and_optimizer_and_ema_and_ddp(
    toy: Toy, one_process: None
) -> None:
    distiller = toy.build_distiller(toy.gfl(), **wide(toy))
    teacher = distiller.teacher.model
    hidden = {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    owned = {id(parameter) for parameter in distiller.parameters()}
    assert not hidden & {*owned, *map(id, distiller.buffers())}
    assert not set(teacher.modules()) & set(distiller.modules())
    average = ExponentialMovingAverage(distiller, update_buffers=True)
    assert average.module.teacher.model is teacher
    parallel = MMDistributedDataParallel(distiller)
    buckets: list[Tensor] = []

    def reduce(
        _: None, bucket: torch.distributed.GradBucket
    ) -> torch.futures.Future[Tensor]:
        buckets.extend(bucket.parameters())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    parallel.register_comm_hook(None, reduce)
    wrapper = OptimWrapper(torch.optim.SGD(parallel.parameters(), lr=0.1))
    parallel.train_step(toy.det_data(), wrapper)
    groups = wrapper.optimizer.param_groups
    assert {id(p) for group in groups for p in group['params']} == owned
    assert {id(p) for p in buckets} == owned
    for model in (distiller, average, parallel):
        keys = {*model.state_dict(), *dict(model.named_parameters())}
        assert {
            key.split('student.')[0] for key in keys if 'connectors' not in key
        } <= {'', 'module.', 'steps'}
        assert not [key for key in keys if 'teacher' in key]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_optimizer_does_not_contain_the_teacher(toy: Toy) -> None:
    from mmengine.optim import build_optim_wrapper

    distiller = toy.build_distiller(toy.gfl(), **wide(toy))
    decay = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    config = dict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=decay)
    wrapper = build_optim_wrapper(distiller, dict(config, type='OptimWrapper'))
    groups = wrapper.optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    assert rates.keys() == {id(p) for p in distiller.parameters()}
    backbone = list(distiller.student.backbone.parameters())
    assert {rates[id(p)] for p in backbone} == {0.1}


def test_ema_shares_the_teacher(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl())
    average = ExponentialMovingAverage(distiller, update_buffers=True)
    assert average.module.teacher is distiller.teacher
    train(distiller, lambda _: toy.det_data(), steps=1)
    average.update_parameters(distiller)
    with torch.no_grad():
        assert len(average.module.eval().val_step(toy.det_data())) == 2


@TASKS
def test_the_teacher_is_bit_identical_after_training(toy: Toy, task: str) -> None:
    """With weight decay, clipped gradients, EMA and batch norms in training mode."""
    config = toy.gfl(norm_eval=False) if task == 'det' else toy.segmentor()
    distiller = toy.build_distiller(config)
    model = distiller.teacher.model
    average = ExponentialMovingAverage(distiller, momentum=0.5, update_buffers=True)
    before = all_tensors(model)
    counters = [name for name in before if 'num_batches_tracked' in name]
    student = state_of(distiller.student)
    for step in range(3):
        train(distiller, lambda seed: data_of(toy, task, seed), steps=step + 1)
        average.update_parameters(distiller)
    assert_equal(all_tensors(model), before)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    after = distiller.student.state_dict()
    assert all(after[name] == 6 for name in counters)
    changed = [name for name in student if not torch.equal(after[name], student[name])]
    assert {'weight', 'running_mean'} <= {name.rpartition('.')[2] for name in changed}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors, including buffers that checkpoints leave out."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_the_teacher_stays_in_eval_mode_when_the_distiller_trains(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.segmentor()).train()
    assert distiller.student.training
    assert not distiller.teacher.model.training


@pytest.mark.parametrize('move', ['to', 'double', 'parent'])
def test_the_teacher_moves_with_the_student(toy: Toy, move: str) -> None:
    stage = dict(fpn='decode_head.conv_seg')
    recorders = dict(student=stage, teacher=stage)
    distiller = toy.build_distiller(toy.segmentor(), recorders=recorders)
    if move == 'to':
        distiller.to(torch.float64)
    elif move == 'double':
        distiller.double()
    else:
        nn.Sequential(distiller).to(dtype=torch.float64)
    model = distiller.teacher.model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.backbone.stem[1].running_mean.dtype == torch.float64
    batch = distiller.data_preprocessor(toy.seg_data(), training=True)
    batch['inputs'] = batch['inputs'].double()
    assert distiller(**batch, mode='loss')['loss_cwd'].dtype == torch.float64


def test_copy_trains_and_its_original_too(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl())
    copied = copy.deepcopy(distiller)
    before = state_of(distiller)
    train(copied, lambda _: toy.det_data(), steps=1)
    assert_equal(distiller.state_dict(), before)


MOVES = pytest.mark.parametrize('move', ['half', 'bfloat16', 'meta'])


def move_to(model: nn.Module, move: str) -> nn.Module:
    return model.to('meta') if move == 'meta' else getattr(model, move)()


def kinds_of(model: nn.Module) -> set:
    tensors = [*model.parameters(), *model.buffers()]
    return {(t.dtype, t.device.type) for t in tensors if t.is_floating_point()}


@MOVES
@pytest.mark.parametrize('mover', ['copy', 'original'])
def test_a_moved_copy_leaves_the_others_teacher_alone(
    toy: Toy, move: str, mover: str
) -> None:
    distiller = toy.build_distiller(toy.gfl())
    copied = copy.deepcopy(distiller)
    assert copied.teacher.model is distiller.teacher.model
    moved, other = distiller, copied
    if mover == 'copy':
        moved, other = other, moved
    before = state_of(other.teacher.model)
    assert move_to(moved, move) is moved
    assert (
        kinds_of(moved.teacher.model)
        == kinds_of(moved.student)
        != kinds_of(other.student)
    )
    assert kinds_of(other.teacher.model) == {(torch.float32, 'cpu')}
    assert_equal(other.teacher.model.state_dict(), before)
    assert loss_of(other, toy.det_data())['loss_cwd'].isfinite()


@pytest.mark.parametrize('way', ['pickle', 'torch', 'deepcopy'])
@pytest.mark.parametrize('model', ['gfl', 'faster_rcnn', 'segmentor'])
def test_a_distiller_that_was_stored_whole_gives_the_same_losses(
    toy: Toy, model: str, way: str
) -> None:
    task = 'seg' if model == 'segmentor' else 'det'
    distiller = toy.build_distiller(getattr(toy, model)())
    train(distiller, lambda step: data_of(toy, task, step), steps=1)
    if way == 'pickle':
        stored = pickle.loads(pickle.dumps(distiller))
    elif way == 'deepcopy':
        stored = copy.deepcopy(distiller)
    else:
        file = io.BytesIO()
        torch.save(distiller, file)
        file.seek(0)
        stored = torch.load(file, weights_only=False)
    logs = []
    for built in (distiller, stored):
        torch.manual_seed(0)
        logs += train(built, lambda step: data_of(toy, task, step), steps=2)
    assert logs[2:] == logs[:2]
    assert_equal(stored.state_dict(), distiller.state_dict())


def test_no_values_come_back_from_meta(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl()).to('meta')
    with pytest.raises(ValueError, match=r'model\.teacher has no weights.*another'):
        distiller.to_empty(device='cpu')


def test_moving_nowhere_copies_nothing(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl())
    teacher, model = distiller.teacher, distiller.teacher.model
    distiller.to('cpu').float().share_memory()
    assert distiller.teacher is teacher
    assert distiller.teacher.model is model


@pytest.mark.parametrize('move', ['half', 'bfloat16'])
def test_a_distiller_moved_to_half_precision_computes_its_losses(
    toy: Toy, move: str
) -> None:
    distiller = move_to(toy.build_distiller(toy.segmentor()), move)
    batch = distiller.data_preprocessor(toy.seg_data(), training=True)
    batch['inputs'] = move_to(batch['inputs'], move)
    losses = distiller(**batch, mode='loss')
    assert losses['loss_cwd'].isfinite()
    assert losses['loss_cwd'].dtype == torch.float32


# Normalisation.


def test_teacher_sees_its_own_normalisation(toy: Toy) -> None:
    config = toy.gfl()
    caffe = dict(mean=[103.5, 116.3, 123.7], std=[1.0] * 3, bgr_to_rgb=False)
    config['model']['data_preprocessor'] |= caffe
    teacher = dict(config=config, allow_random=True)
    distiller = toy.build_distiller(toy.gfl(), teacher=teacher)
    seen: list[Tensor] = []
    distiller.teacher.model.backbone.register_forward_pre_hook(
        lambda _, inputs: seen.extend(inputs)
    )
    loss_of(distiller, toy.det_data())
    own = distiller.teacher.model.data_preprocessor
    expected = own(toy.det_data(), training=True)['inputs']
    torch.testing.assert_close(seen, [expected], rtol=1e-5, atol=1e-3)


# Losses and their names.


class Terms(nn.Module):
    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        difference = (student - teacher).square().mean() * self.loss_weight
        return dict(fg=difference, bg=2 * difference)


@pytest.fixture
def terms(toy: Toy) -> Distiller:
    distiller = toy.build_distiller(toy.gfl())
    distiller.losses['loss_cwd'] = Terms()
    return distiller


def test_terms_are_logged_and_summed_over_levels(toy: Toy, terms: Distiller) -> None:
    maps = [torch.full((1, 1, 1, 1), float(level)) for level in range(3)]
    wires = {'student.fpn': maps, 'teacher.fpn': [torch.zeros(1, 1, 1, 1)] * 3}
    assert terms.wiring(wires, {}) == {'loss_cwd.fg': 5, 'loss_cwd.bg': 10}
    [log] = train(terms, lambda _: toy.det_data(), steps=1)
    total = sum(float(value) for name, value in log.items() if name != 'loss')
    assert float(log['loss']) == pytest.approx(total)
    assert log['loss_cwd.bg'] > log['loss_cwd.fg'] > 0


def test_levels_are_summed(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl())
    generator = torch.Generator().manual_seed(0)
    sides = [
        [torch.randn(2, 8, size, size, generator=generator) for size in (8, 4, 2)]
        for _ in range(2)
    ]
    wires = {'student.fpn': sides[0], 'teacher.fpn': sides[1]}
    distilled = distiller.wiring(wires, {})
    loss = distiller.losses['loss_cwd']
    expected = sum(loss(*pair) for pair in zip(*sides, strict=True))
    torch.testing.assert_close(distilled, dict(loss_cwd=expected))


def test_one_of_two_losses_at_weight_0_is_not_computed(toy: Toy) -> None:
    losses = dict(loss_a=dict(CWD, loss_weight=0.0), loss_b=CWD)
    distiller = toy.build_distiller(toy.gfl(), losses=losses)
    distiller.losses['loss_a'].register_forward_pre_hook(never)
    found = loss_of(distiller, toy.det_data())
    assert found['loss_a'] == 0
    assert found['loss_b'] > 0


def test_name_without_loss(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"model\.losses\.cwd.*'loss_cwd'"):
        toy.build_distiller(toy.gfl(), losses=dict(cwd=CWD))


@pytest.mark.parametrize('weight', [1.0, 0.0])
def test_name_of_a_task_loss_is_refused(toy: Toy, weight: float) -> None:
    losses = dict(loss_cls=dict(CWD, loss_weight=weight))
    with pytest.raises(ValueError, match=r"named \['loss_cls'\].*other names"):
        loss_of(toy.build_distiller(toy.gfl(), losses=losses), toy.det_data())


def test_name_of_mmengines_total_is_refused(toy: Toy) -> None:
    # `parse_losses` logs the sum as 'loss' and would overwrite this loss.
    with pytest.raises(ValueError, match=r'model\.losses\.loss'):
        loss_of(toy.build_distiller(toy.gfl(), losses=dict(loss=CWD)), toy.det_data())


def test_level_counts_differ(toy: Toy) -> None:
    recorders = dict(student=dict(fpn='neck'), teacher=dict(fpn='backbone'))
    distiller = toy.build_distiller(toy.gfl(), recorders=recorders)
    with pytest.raises(ValueError, match='loss_cwd') as caught:
        loss_of(distiller, toy.det_data())
    assert 'student.fpn has 3 levels, teacher.fpn has 4' in str(caught.value)


def test_channels_differ_names_loss_level_and_connector(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl(), toy.gfl(out=16))
    with pytest.raises(ValueError, match='ConvConnector') as caught:
        loss_of(distiller, toy.det_data())
    assert 'model.losses.loss_cwd, level 0' in str(caught.value)
    assert '(2, 8, 8, 8)' in str(caught.value)
    assert '(2, 16, 8, 8)' in str(caught.value)


def test_validation_loss_without_gradients(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl()).eval()
    with torch.no_grad():
        assert loss_of(distiller, toy.det_data())['loss_cwd'] > 0


def test_image_without_boxes_steps(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl(), **wide(toy))
    [log] = train(distiller, lambda _: toy.det_data(boxes=0), steps=1)
    assert all(value.isfinite() for value in log.values())
    assert log['loss_cwd'] > 0


def test_faster_rcnn_steps(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.faster_rcnn())
    before = state_of(distiller.student.rpn_head)
    [log] = train(distiller, lambda _: toy.det_data(), steps=1)
    assert {'loss_rpn_cls', 'loss_bbox', 'loss_cwd'} < log.keys()
    after = distiller.student.rpn_head.state_dict()
    assert not torch.equal(after['rpn_cls.weight'], before['rpn_cls.weight'])


def test_segmentor_under_a_wider_one_with_auxiliary_heads(toy: Toy) -> None:
    paths = dict(logits='decode_head.conv_seg', aux='auxiliary_head.conv_seg')
    names = {f'loss_{n}': dict(CWD, student=f'student.{n}') for n in paths}
    losses = {k: dict(v, teacher='teacher.' + k[5:]) for k, v in names.items()}
    distiller = toy.build_distiller(
        toy.segmentor(),
        toy.segmentor(base=16),
        recorders=dict(student=paths, teacher=paths),
        losses=losses,
    )
    [log] = train(distiller, lambda _: toy.seg_data(), steps=1)
    assert log['loss_logits'] > 0
    assert log['loss_aux'] > 0


def test_detector_under_a_segmentor(toy: Toy) -> None:
    stage = dict(stage='backbone.layer3')
    loss = dict(CWD, student='student.stage', teacher='small')
    small = dict(type='ResizeConnector', input='teacher.stage', like='student.stage')
    distiller = toy.build_distiller(
        toy.gfl(),
        toy.segmentor(),
        recorders=dict(student=stage, teacher=stage),
        connectors=dict(small=small),
        losses=dict(loss_cwd=loss),
    )
    assert type(distiller.teacher.model).__module__.startswith('mmseg')
    assert loss_of(distiller, toy.det_data())['loss_cwd'] > 0


def test_frozen_record_is_refused(toy: Toy) -> None:
    config = toy.gfl()
    config['model']['backbone']['frozen_stages'] = 1
    stage = dict(fpn='backbone.layer1')
    recorders = dict(student=stage, teacher=stage)
    distiller = toy.build_distiller(config, recorders=recorders)
    with pytest.raises(ValueError, match=r'recorders\.student\.fpn.*frozen stage'):
        loss_of(distiller, toy.det_data())


# Connectors.


def test_connectors_train(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl(), **wide(toy))
    name = 'connectors.aligned.convs.0.conv.weight'
    weight = dict(distiller.named_parameters())[name]
    loss_of(distiller, toy.det_data())['loss_cwd'].backward()
    assert weight.grad.abs().sum() > 0
    before = weight.detach().clone()
    train(distiller, lambda _: toy.det_data(), steps=1)
    assert not torch.equal(distiller.state_dict()[name], before)


def chain(toy: Toy, order: str) -> Any:
    """Build a distiller of two connectors, the second of which reads the first."""
    parts = dict(
        a=dict(type='ConvConnector', input='z', in_channels=4, out_channels=8),
        z=dict(ALIGNED, in_channels=8, out_channels=4),
    )
    connectors = {name: parts[name] for name in order}
    losses = dict(loss_cwd=dict(CWD, student='a'), loss_b=dict(CWD, student='a'))
    losses = {key: losses[key] for key in sorted(losses, reverse=order == 'za')}
    return seeded(toy.build_distiller, toy.gfl(), connectors=connectors, losses=losses)


def test_order_of_keys_changes_neither_weights_nor_losses(toy: Toy) -> None:
    one, other = chain(toy, 'az'), chain(toy, 'za')
    other.teacher.model.load_state_dict(one.teacher.model.state_dict())
    assert [*one.state_dict()] == [*other.state_dict()]
    assert_equal(one.state_dict(), other.state_dict())
    logs = [loss_of(model, toy.det_data()) for model in (one, other)]
    assert [*logs[0]] == [*logs[1]]
    assert logs[0]['loss_cwd'] == logs[1]['loss_cwd'] > 0


def test_connectors_that_read_each_other_are_named(toy: Toy) -> None:
    conv = dict(type='ConvConnector', in_channels=8, out_channels=8)
    connectors = dict(a=dict(conv, input='b'), b=dict(conv, input='a'))
    with pytest.raises(ValueError, match='a -> b -> a go round|b -> a -> b go round'):
        toy.build_distiller(
            toy.gfl(), connectors=connectors, losses=dict(loss_a=dict(CWD, student='a'))
        )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(loss_weight='2.0'), r'losses\.loss_cwd\.loss_weight: expected a number'),
        (dict(tau='4'), r'losses\.loss_cwd\.tau: expected a number, got the text .4'),
        (
            dict(weight=2.0),
            r"losses\.loss_cwd: .*'weight' \(did you mean 'loss_weight'",
        ),
    ],
)
def test_arguments_of_a_loss_are_checked(toy: Toy, change: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        toy.build_distiller(toy.gfl(), losses=dict(loss_cwd=dict(CWD, **change)))


def test_a_delete_that_deletes_nothing_is_no_argument(toy: Toy) -> None:
    losses = dict(loss_cwd=dict(CWD, _delete_=True))
    assert 'loss_cwd' in toy.build_distiller(toy.gfl(), losses=losses).losses


@pytest.mark.parametrize('name', ['student.fpn', 'keys'])
def test_names_that_no_module_can_have_are_refused(toy: Toy, name: str) -> None:
    changes = wide(toy)
    changes['connectors'] = {name: changes['connectors']['aligned']}
    with pytest.raises(
        ValueError, match=f"model.connectors: '{name}' cannot be a name"
    ):
        toy.build_distiller(toy.gfl(), **changes)


def test_top_level_preprocessor_is_the_students_where_it_has_none(toy: Toy) -> None:
    config = toy.segmentor()
    preprocessor = config['model'].pop('data_preprocessor')
    distiller = toy.build_distiller(
        config,
        dict(config, data_preprocessor=preprocessor),
        data_preprocessor=dict(preprocessor, size=(32, 32)),
    )
    assert distiller.data_preprocessor.size == (32, 32)
    assert distiller.teacher.model.data_preprocessor.size == (64, 64)
    own = toy.build_distiller(
        toy.segmentor(), data_preprocessor=dict(preprocessor, size=(32, 32))
    )
    assert own.data_preprocessor.size == (64, 64)


def test_losses_ignore_the_label_that_the_head_ignores(toy: Toy) -> None:
    config = toy.segmentor()
    config['model']['decode_head']['ignore_index'] = 3
    config['model']['auxiliary_head']['ignore_index'] = 3
    config['model']['data_preprocessor']['seg_pad_val'] = 3
    path = dict(logits='decode_head.conv_seg')
    kd = dict(type='KDLoss', student='student.logits', teacher='teacher.logits')
    distiller = toy.build_distiller(
        config,
        recorders=dict(student=path, teacher=path),
        losses=dict(loss_kd=dict(kd, tau=1.0)),
    )
    data = toy.seg_data()
    for sample in data['data_samples']:
        sample.gt_sem_seg.data.fill_(3)
    assert loss_of(distiller, data)['loss_kd'] == 0
    for sample in data['data_samples']:
        sample.gt_sem_seg.data.fill_(2)
    assert loss_of(distiller, data)['loss_kd'] > 0


def test_wrong_channels_name_the_connector_and_the_number(toy: Toy) -> None:
    changes = wide(toy)
    changes['connectors']['aligned'] |= dict(in_channels=32)
    distiller = toy.build_distiller(toy.gfl(), **changes)
    with pytest.raises(ValueError, match=r'connectors\.aligned.*set in_channels=8'):
        loss_of(distiller, toy.det_data())


@pytest.mark.parametrize(
    'connector',
    [
        dict(type='ResizeConnector', input='student.fpn'),
        dict(type='ResizeConnector', like='student.fpn'),
        dict(ALIGNED, like='teacher.fpn', in_channels=8, out_channels=8),
    ],
    ids=['no like', 'no input', 'like too many'],
)
def test_wires_that_do_not_fit_the_connector(toy: Toy, connector: dict) -> None:
    losses = dict(loss_cwd=dict(CWD, student='made'))
    changes = dict(connectors=dict(made=connector), losses=losses)
    with pytest.raises((TypeError, ValueError), match=r'model\.connectors\.made'):
        loss_of(toy.build_distiller(toy.gfl(), **changes), toy.det_data())


# Errors of a config say how to correct it.


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(losses=dict(loss_cwd=dict(CWD, student='student.fnp'))),
            r"losses\.loss_cwd\.student: no wire 'student\.fnp'.*mean 'student\.fpn'",
        ),
        (
            dict(losses=dict(loss_cwd=dict(CWD, teacher='fpn'))),
            r"losses\.loss_cwd\.teacher: no wire 'fpn'.*'teacher\.fpn'",
        ),
        (
            dict(losses=dict(loss_cwd=dict(type='CWDLoss', student='student.fpn'))),
            r"losses\.loss_cwd: CWDLoss reads .*name one as 'teacher'",
        ),
        (
            dict(losses=dict(loss_cwd=dict(type='CWDLoss'))),
            r"losses\.loss_cwd: CWDLoss .*one as 'student' and one as 'teacher'",
        ),
        (
            dict(recorders=dict(student=dict(fpn='nek'), teacher=dict(fpn='neck'))),
            r"recorders\.student\.fpn: GFL has no module 'nek'; nearest: neck",
        ),
        (
            dict(recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck.9'))),
            r"recorders\.teacher\.fpn: GFL has no module 'neck\.9'; nearest: neck",
        ),
        (
            dict(recorders=dict(student=dict(fpn='neck'))),
            r'model\.recorders: expected dict\(student=\.\.\., teacher=\.\.\.\)',
        ),
    ],
)
def test_typo_in_wires_and_recorders(toy: Toy, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy.build_distiller(toy.gfl(), **changes)


def test_a_wire_with_a_default_may_be_left_out(toy: Toy) -> None:
    logits = dict(logits='decode_head.conv_seg')
    wires = dict(student='student.logits', teacher='teacher.logits')
    changes = dict(recorders=dict(student=logits, teacher=logits))

    def build(**entry: str) -> Distiller:
        losses = dict(loss_dkd=dict(entry, type='DKDLoss'))
        return toy.build_distiller(toy.segmentor(), losses=losses, **changes)

    # The loss then reads the labels of the pixels.
    assert loss_of(build(**wires), toy.seg_data())['loss_dkd'] > 0
    with pytest.raises(ValueError, match=r"loss_dkd\.labels: no wire 'roi\.labels'"):
        build(**wires, labels='roi.labels')
    del wires['teacher']
    with pytest.raises(ValueError, match=r"DKDLoss reads .*name one as 'teacher'$"):
        build(**wires)


def test_typo_in_a_loss_type_names_the_near_one(toy: Toy) -> None:
    losses = dict(loss_cwd=dict(CWD, type='CDWLoss'))
    with pytest.raises((KeyError, ValueError), match='CWDLoss'):
        toy.build_distiller(toy.gfl(), losses=losses)


def test_wrong_argument_of_a_loss_names_it(toy: Toy) -> None:
    losses = dict(loss_cwd=dict(CWD, temperature=4.0))
    with pytest.raises((TypeError, ValueError), match="'temperature'") as caught:
        toy.build_distiller(toy.gfl(), losses=losses)
    assert 'CWDLoss' in str(caught.value)


@pytest.mark.parametrize('kind', ['L1Loss', 'KnowledgeDistillationKLDivLoss'])
def test_bare_name_of_mmdet_is_not_taken_for_ours(toy: Toy, kind: str) -> None:
    from mmengine.registry import DefaultScope

    losses = dict(loss_cwd=dict(CWD, type=kind))
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises((KeyError, ValueError), match=kind),
    ):
        toy.build_distiller(toy.gfl(), losses=losses)


def test_bare_names_mean_kdtoolbox_in_any_scope(toy: Toy) -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        distiller = toy.build_distiller(toy.gfl(), **wide(toy))
    assert (
        type(distiller.losses['loss_cwd']).__module__ == 'kdtoolbox.losses.features.cwd'
    )
    aligned = distiller.connectors['aligned']
    assert type(aligned).__module__ == 'kdtoolbox.connectors.conv'


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('teacher.fpn', 'teacher.fpn'), ('teacher.fpn', 'student.fpn')],
    ids=['teacher twice', 'swapped'],
)
def test_loss_that_can_train_nothing_is_refused(
    toy: Toy, student: str, teacher: str
) -> None:
    losses = dict(loss_cwd=dict(CWD, student=student, teacher=teacher))
    with pytest.raises(ValueError, match=r'model\.losses\.loss_cwd'):
        loss_of(toy.build_distiller(toy.gfl(), losses=losses), toy.det_data())


def test_wire_that_nothing_reads_is_refused(toy: Toy) -> None:
    # Its parameters get no gradient, so DDP raises an error in the second step.
    spare = dict(ALIGNED, in_channels=8, out_channels=8)
    with pytest.raises(ValueError, match=r'model\.connectors\.spare'):
        toy.build_distiller(toy.gfl(), connectors=dict(spare=spare))


def test_configs_are_not_changed(toy: Toy) -> None:
    config = toy.distiller(toy.gfl(), **wide(toy))
    before = copy.deepcopy(config)
    arguments = {key: value for key, value in config.items() if key != 'type'}
    Distiller(**arguments)
    assert config == before


# Together with the task libraries.


def test_load_from_a_plain_checkpoint_loads_the_student(
    toy: Toy, tmp_path: Path
) -> None:
    from mmengine.runner import load_checkpoint

    plain = toy.build(toy.gfl())
    torch.save(dict(state_dict=plain.state_dict(), meta={}), tmp_path / 'coco.pth')
    distiller = toy.build_distiller(toy.gfl())
    # Raising an error would be correct, too.
    with contextlib.suppress(RuntimeError, ValueError):
        load_checkpoint(distiller, str(tmp_path / 'coco.pth'), map_location='cpu')
        assert_equal(distiller.student.state_dict(), plain.state_dict())


def test_mmdet_hook_that_switches_the_head_reaches_the_student(toy: Toy) -> None:
    from mmdet.engine.hooks import YOLOXModeSwitchHook

    distiller = toy.build_distiller(toy.gfl())
    dataset = SimpleNamespace(update_skip_type_keys=lambda keys: None)
    runner = SimpleNamespace(
        model=distiller,
        epoch=0,
        max_epochs=1,
        train_dataloader=SimpleNamespace(dataset=dataset),
        logger=SimpleNamespace(info=print),
    )
    YOLOXModeSwitchHook(num_last_epochs=1).before_train_epoch(runner)
    assert distiller.student.bbox_head.use_l1
