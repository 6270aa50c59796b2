"""Losses are tried on random images without changing the training."""

from copy import deepcopy
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub

from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.runs.rehearsal import rehearse

Toy = SimpleNamespace
CWD = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
LOGITS = dict(student='student.logits', teacher='teacher.logits')
SEG = dict(logits='decode_head.conv_seg')


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to the log."""
    lines: list[str] = []
    monkeypatch.setattr(
        'kdtoolbox.runs.rehearsal.print_log', lambda text, logger: lines.append(text)
    )
    return lines


def seg_logits(**loss: Any) -> dict:
    return dict(
        recorders=dict(student=SEG, teacher=SEG),
        losses=dict(loss_a=dict(LOGITS, **loss)),
    )


@pytest.mark.parametrize('task', ['gfl', 'faster_rcnn', 'segmentor'])
def test_a_right_recipe_leaves_the_model_and_the_random_state(
    toy: Toy, task: str, told: list[str]
) -> None:
    model = toy.build_distiller(getattr(toy, task)()).train()
    before, drawn = deepcopy(model.state_dict()), torch.get_rng_state()
    rehearse(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    assert all(p.grad is None for p in model.parameters())
    assert 'were not tried' not in ''.join(told)


def misfits(toy: Toy) -> dict[str, tuple[Any, str]]:
    wide = dict(config=toy.gfl(base=16, out=16), allow_random=True)
    conv = dict(
        type='ConvConnector', input='student.fpn', in_channels=32, out_channels=16
    )
    five = toy.gfl()
    five['model']['neck']['num_outs'] = 4
    frozen = toy.gfl()
    frozen['model']['backbone']['frozen_stages'] = 1
    many = toy.segmentor()
    many['model']['decode_head']['num_classes'] = 7
    build = toy.build_distiller
    return {
        'channels': (build(toy.gfl(), teacher=wide), r'model\.losses\.loss_cwd'),
        'connector': (
            build(
                toy.gfl(),
                teacher=wide,
                connectors=dict(a=conv),
                losses=dict(loss_cwd=dict(CWD, student='a')),
            ),
            r'model\.connectors\.a.*set in_channels=8',
        ),
        'levels': (build(toy.gfl(), five), '3 levels.*4 levels'),
        'classes': (
            build(toy.segmentor(), many, **seg_logits(type='KDLoss', tau=1.0)),
            r'model\.losses\.loss_a.*\(2, 4, .*\(2, 7, ',
        ),
        'boxes of a segmentor': (
            build(
                toy.segmentor(),
                losses=dict(
                    loss_fgd=dict(CWD, type='FGDLoss', channels=8, num_levels=1)
                ),
                recorders=dict(
                    student=dict(fpn='backbone.layer1'),
                    teacher=dict(fpn='backbone.layer1'),
                ),
            ),
            r'model\.losses\.loss_fgd.*gt_instances.*take another loss',
        ),
        'frozen': (
            build(
                frozen,
                recorders=dict(
                    student=dict(fpn='backbone.conv1'),
                    teacher=dict(fpn='backbone.conv1'),
                ),
            ),
            r'model\.recorders\.student\.fpn.*no gradient',
        ),
    }


@pytest.mark.parametrize(
    'name',
    ['channels', 'connector', 'levels', 'classes', 'boxes of a segmentor', 'frozen'],
)
def test_misfits_are_reported_before_the_first_iteration(toy: Toy, name: str) -> None:
    model, told = misfits(toy)[name]
    with pytest.raises(ValueError, match=told):
        rehearse(model)


def test_a_student_that_fails_on_random_images_is_logged_in_one_line(
    toy: Toy, told: list[str]
) -> None:
    model = toy.build_distiller(toy.gfl())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError('prompts')

    model.student.bbox_head.loss = fail
    rehearse(model)
    assert "not tried before the first iteration: KeyError: 'prompts'" in ''.join(told)


@pytest.mark.parametrize('change', ['no copy', 'no classes'])
def test_a_student_without_a_suitable_batch_is_logged_in_one_line(
    toy: Toy, change: str, told: list[str]
) -> None:
    model = toy.build_distiller(toy.segmentor())
    if change == 'no copy':
        model.student.lock = Lock()
    else:
        del model.student.decode_head.num_classes
    rehearse(model)
    assert 'not tried before the first iteration' in ''.join(told)


def test_an_overflow_of_random_weights_raises_nothing(
    toy: Toy, told: list[str]
) -> None:
    model = toy.build_distiller(toy.gfl())
    model.student.neck.register_forward_hook(
        lambda module, args, out: tuple(level * float('inf') for level in out)
    )
    rehearse(model)
    assert 'not tried before the first iteration' in ''.join(told)


def test_losses_that_read_epoch_and_iteration_are_tried(
    toy: Toy, told: list[str]
) -> None:
    model = toy.build_distiller(toy.gfl())
    hub, own = MessageHub.get_current_instance(), model.student.bbox_head.loss
    before = dict(hub.runtime_info)

    # As the heads of TOOD and BoxInst do.
    def loss(*args: Any) -> dict:
        assert hub.get_info('epoch') >= 0
        assert hub.get_info('iter') >= 0
        return own(*args)

    model.student.bbox_head.loss = loss
    rehearse(model)
    assert 'were not tried' not in ''.join(told)
    assert hub.runtime_info == before


def test_a_made_up_label_map_has_few_classes(toy: Toy) -> None:
    # Each class is a mask of a Mask2Former, and 150 of them take gigabytes.
    config = toy.segmentor()
    for head in ('decode_head', 'auxiliary_head'):
        config['model'][head]['num_classes'] = 150
    _, samples = made_up_batch(toy.build(config))
    assert all(len(sample.gt_sem_seg.data.unique()) <= 8 for sample in samples)


@pytest.mark.parametrize(
    ('mean', 'channels'), [([1.0], 1), ([1.0], 4), (None, 4), (None, 3)]
)
def test_images_have_the_students_channels(
    toy: Toy, mean: list | None, channels: int
) -> None:
    config = toy.segmentor()
    config['model']['backbone']['in_channels'] = channels
    config['model']['data_preprocessor'].update(
        mean=mean, std=mean, bgr_to_rgb=channels == 3
    )
    images, samples = made_up_batch(toy.build(config))
    assert images.shape == (2, channels, 64, 64)
    assert [tuple(sample.gt_sem_seg.shape) for sample in samples] == [(64, 64)] * 2
