from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdtoolbox.normalization import Renormalization

RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
UNIT = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True)
GREY = dict(mean=[128.0], std=[64.0])
NONE: dict = {}
# One entry for both libraries, whose names differ.
PAD = dict(pad=114.0)
PAIRS = {
    'rgb to caffe': (RGB, CAFFE),
    'caffe to rgb': (CAFFE, RGB),
    'unit to rgb': (UNIT, RGB),
    'rgb to none': (RGB, NONE),
    'none to caffe': (NONE, CAFFE),
    'order alone': (RGB, RGB | dict(bgr_to_rgb=False)),
    'rgb_to_bgr': (RGB, CAFFE | dict(bgr_to_rgb=False, rgb_to_bgr=True)),
    'one mean': (RGB, GREY),
    'equal': (RGB, RGB),
    'padded alike': (RGB | PAD, CAFFE | PAD),
    'teacher padded': (RGB, NONE | PAD),
    'student padded': (NONE | PAD, RGB),
}


def build(task: str, arguments: dict) -> nn.Module:
    arguments = dict(arguments)
    pad = arguments.pop('pad', 0)
    if task == 'det':
        from mmdet.models import DetDataPreprocessor

        return DetDataPreprocessor(**arguments, pad_size_divisor=32, pad_value=pad)
    from mmseg.models import SegDataPreProcessor

    return SegDataPreProcessor(**arguments, size=(96, 96), pad_val=pad)


@pytest.mark.parametrize('pair', PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_teacher_sees_what_its_own_preprocessor_makes(
    toy: SimpleNamespace, task: str, pair: tuple[dict, dict]
) -> None:
    student, teacher = (build(task, arguments) for arguments in pair)
    make = toy.det_data if task == 'det' else toy.seg_data
    sizes = ((50, 70), (64, 40), (33, 64))
    batch = student(make(sizes), training=True)
    expected = teacher(make(sizes), training=True)['inputs']
    before = batch['inputs'].clone()

    converted = Renormalization(student, teacher)(**batch)
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=2e-4)
    assert torch.equal(batch['inputs'], before)


def test_equal_recipes_cost_nothing() -> None:
    inputs = torch.ones(1, 3, 4, 4)
    same = Renormalization(build('det', RGB), build('det', RGB))
    assert same(inputs, []) is inputs


def test_mmdet_student_under_an_mmseg_teacher(toy: SimpleNamespace) -> None:
    student, teacher = build('det', RGB), build('seg', CAFFE)
    batch = student(toy.det_data(((96, 96),)), training=True)
    expected = teacher(toy.seg_data(((96, 96),)), training=True)['inputs']
    converted = Renormalization(student, teacher)(**batch)
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=2e-4)


def test_dtype_of_the_batch_is_kept() -> None:
    convert = Renormalization(build('det', RGB), build('det', CAFFE))
    assert convert(torch.ones(1, 3, 4, 4, dtype=torch.float64), []).dtype is (
        torch.float64
    )


def test_mmseg_1_2_names_the_channel_order_without_underscore() -> None:
    # Its SegDataPreProcessor is no ImgDataPreprocessor.
    original = nn.Module()
    original.channel_conversion = True
    original.mean = original.std = None
    convert = Renormalization(build('seg', NONE), original)
    inputs = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert convert(inputs, []).flatten().tolist() == [2, 1, 0]
