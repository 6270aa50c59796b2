from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdtoolbox.teachers.normalization import Renormalization

RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
UNIT = dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True)
GREY = dict(mean=[128.0], std=[64.0])
NONE: dict = {}
# One entry serves both libraries, which use different names.
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


def test_equal_normalisations_return_the_same_batch() -> None:
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
    # SegDataPreProcessor is not a subclass of ImgDataPreprocessor.
    original = nn.Module()
    original.channel_conversion = True
    original.mean = original.std = None
    convert = Renormalization(build('seg', NONE), original)
    inputs = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert convert(inputs, []).flatten().tolist() == [2, 1, 0]


def bands(count: int | None, flip: bool = False) -> nn.Module:
    """A preprocessor that accepts any number of channels, like that of mmseg."""
    made = nn.Module()
    made.channel_conversion, made.pad_val = flip, 0.0
    made.mean = made.std = None
    if count:
        values = torch.arange(1.0, count + 1).reshape(-1, 1, 1)
        made.mean, made.std = values, 2 * values
    return made


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('sides', [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_images_may_have_any_number_of_channels(
    channels: int, sides: tuple[int, int]
) -> None:
    raw = torch.arange(2.0 * channels * 6).reshape(2, channels, 2, 3)
    student, teacher = (bands(channels * side) for side in sides)
    teacher.mean = None if teacher.mean is None else teacher.mean + 5
    made = [
        raw if side.mean is None else (raw - side.mean) / side.std
        for side in (student, teacher)
    ]
    sample = SimpleNamespace(img_shape=(2, 3))
    found = Renormalization(student, teacher)(made[0], [sample] * 2)
    torch.testing.assert_close(found, made[1])


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_only_three_channels_are_swapped(channels: int) -> None:
    inputs = torch.arange(1.0 * channels).reshape(1, channels, 1, 1)
    for counts in ((0, 0), (channels, channels)):
        convert = Renormalization(bands(counts[0]), bands(counts[1], flip=True))
        assert torch.equal(convert(inputs, []), inputs)


@pytest.mark.parametrize('counts', [(3, 4), (4, 3), (2, 3)])
def test_other_numbers_of_channels_are_refused(counts: tuple[int, int]) -> None:
    message = f'images of {counts[0]} channels, .* are for {counts[1]}; .* `mean`'
    with pytest.raises(ValueError, match=message):
        Renormalization(bands(counts[0]), bands(counts[1]))


@pytest.mark.parametrize('count', [0, 1])
def test_a_grey_batch_for_a_colour_teacher_is_refused(count: int) -> None:
    convert = Renormalization(bands(count), bands(3))
    with pytest.raises(ValueError, match='images of 1 channels, .* are for 3'):
        convert(torch.zeros(2, 1, 4, 4), [])
