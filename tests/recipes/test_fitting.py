from pathlib import Path
from types import SimpleNamespace

import pytest
from built_sides import side
from mmengine.config import Config

from kdtoolbox.recipes.fitted import Fitted
from kdtoolbox.recipes.fitting import classes_of, fit
from kdtoolbox.recipes.sides import Side
from kdtoolbox.recipes.templates import Template

Toy = SimpleNamespace
ENDS = dict(student='student.fpn', teacher='teacher.fpn')
FPN = dict(student=dict(fpn='neck'), teacher=dict(fpn='neck'))


def fitted(
    student: dict, teacher: dict, at: str | None = None, **model: dict
) -> Fitted:
    model.setdefault('recorders', FPN)
    config = Config(dict(model=dict(student=student['model'], **model)))
    pair = side('student', student), side('teacher', teacher)
    return fit(Template(Path('cwd/a.py'), config), *pair, at)


def test_equal_models_need_no_connector(toy: Toy) -> None:
    made = fitted(
        toy.gfl(), toy.gfl(), losses=dict(loss_a=dict(type='PKDLoss', **ENDS))
    )
    assert not made.connectors
    assert made.losses == dict(loss_a=dict(type='PKDLoss', **ENDS))


def test_other_channels_get_a_convolution(toy: Toy) -> None:
    made = fitted(
        toy.gfl(),
        toy.gfl(base=16, out=16),
        losses=dict(loss_a=dict(type='FGDLoss', channels=256, num_levels=5, **ENDS)),
    )
    assert made.connectors == dict(
        aligned=dict(
            type='ConvConnector',
            input='student.fpn',
            in_channels=[8, 8, 8],
            out_channels=16,
        )
    )
    loss = made.losses['loss_a']
    assert loss['student'] == 'aligned'
    assert (loss['channels'], loss['num_levels']) == (16, 3)


def test_each_level_gets_a_factor(toy: Toy) -> None:
    guides = dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
    loss = dict(type='PGDClsLoss', **ENDS, **guides)
    made = fitted(toy.gfl(), toy.gfl(), losses=dict(loss_pgd=loss))
    assert made.losses['loss_pgd']['level_weights'] == [1.0, 1.25, 1.5]


def test_a_loss_that_takes_other_channels_gets_no_convolution(toy: Toy) -> None:
    losses = dict(loss_dsd=dict(type='DSDPixelLoss', **ENDS))
    made = fitted(toy.gfl(), toy.gfl(base=16, out=16), losses=losses)
    assert not made.connectors


def test_channels_of_a_template_are_replaced(toy: Toy) -> None:
    conv = dict(type='ConvConnector', input='student.fpn', kernel_size=3)
    conv |= dict(in_channels=[256] * 5, out_channels=256)
    made = fitted(
        toy.gfl(),
        toy.gfl(base=16, out=16),
        connectors=dict(adapted=conv),
        losses=dict(
            loss_a=dict(type='FGFILoss', student='adapted', teacher='teacher.fpn')
        ),
    )
    [(name, config)] = made.connectors.items()
    assert name == 'adapted'
    assert config['in_channels'] == [8, 8, 8]
    assert config['out_channels'] == 16
    assert config['kernel_size'] == 3


def test_a_generator_gets_the_teachers_channels(toy: Toy) -> None:
    generator = dict(type='MGDConnector', channels=256, num_levels=5, mask_ratio=0.65)
    made = fitted(
        toy.gfl(),
        toy.gfl(base=16, out=16),
        connectors=dict(generated=dict(generator, input='student.fpn')),
        losses=dict(
            loss_a=dict(type='MGDLoss', student='generated', teacher='teacher.fpn')
        ),
    )
    assert made.connectors['generated'] == dict(
        generator, channels=16, num_levels=3, input='aligned'
    )
    assert made.connectors['aligned']['out_channels'] == 16


def test_other_sizes_are_resized_once(toy: Toy) -> None:
    coarse = toy.segmentor()
    # The stride of the last stage is 8 rather than 32.
    fine = toy.segmentor()
    fine['model']['backbone'].update(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    logits = dict(logits='decode_head.conv_seg')
    ends = dict(student='student.logits', teacher='teacher.logits')
    made = fitted(
        coarse,
        fine,
        recorders=dict(student=logits, teacher=logits),
        losses=dict(
            loss_a=dict(type='KDLoss', **ends), loss_b=dict(type='CWDLoss', **ends)
        ),
    )
    resized = dict(
        type='ResizeConnector', input='student.logits', like='teacher.logits'
    )
    assert made.connectors == dict(resized=resized)
    assert {loss['student'] for loss in made.losses.values()} == {'resized'}


def transformer(width: int) -> dict:
    backbone = dict(type='VisionTransformer', embed_dims=width, num_heads=2)
    backbone |= dict(img_size=64, num_layers=2, mlp_ratio=1)
    head = dict(type='FCNHead', in_channels=width, in_index=0, channels=8)
    head |= dict(num_convs=1, num_classes=3, concat_input=False)
    model = dict(type='EncoderDecoder', backbone=backbone, decode_head=head)
    model |= dict(data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)))
    return dict(default_scope='mmseg', model=model)


def test_tokens_of_other_channels_get_a_convolution() -> None:
    blocks = dict(top='backbone.layers.1')
    grid = dict(type='TokenConnector', skip=1)
    conv = dict(type='ConvConnector', in_channels=384, out_channels=768)
    made = fitted(
        transformer(8),
        transformer(12),
        recorders=dict(student=blocks, teacher=blocks),
        connectors=dict(
            own=dict(grid, input='student.top'),
            goal=dict(grid, input='teacher.top'),
            top=dict(conv, input='own'),
        ),
        losses=dict(loss_a=dict(type='PKDLoss', student='top', teacher='goal')),
    )
    assert made.connectors['top'] == dict(
        type='ConvConnector', input='own', in_channels=8, out_channels=12
    )


def test_losses_on_a_missing_auxiliary_head_are_left_out(toy: Toy) -> None:
    student = toy.segmentor()
    student['model'].pop('auxiliary_head', None)
    layers = dict(main='decode_head.conv_seg', aux='auxiliary_head.conv_seg')
    made = fitted(
        student,
        student,
        recorders=dict(student=layers, teacher=layers),
        losses=dict(
            loss_a=dict(
                type='DISTLoss', student='student.main', teacher='teacher.main'
            ),
            loss_b=dict(type='DISTLoss', student='student.aux', teacher='teacher.aux'),
        ),
    )
    assert made.losses.keys() == {'loss_a'}
    assert made.recorders['student'].keys() == {'main'}


def test_logits_of_other_classes_are_refused(toy: Toy) -> None:
    other = toy.segmentor()
    other['model']['decode_head']['num_classes'] = 7
    logits = dict(logits='decode_head.conv_seg')
    ends = dict(student='student.logits', teacher='teacher.logits')
    assert classes_of(Side('teacher', other)) == 7
    with pytest.raises(ValueError, match='the student has 4 classes, the teacher 7'):
        fitted(
            toy.segmentor(),
            other,
            recorders=dict(student=logits, teacher=logits),
            losses=dict(loss_a=dict(type='KDLoss', **ends)),
        )
