from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from pixels import samples_of
from torch.nn import functional

from kdtoolbox.losses.logits.pixel_labels import IGNORED, number_classes, pixel_labels


def test_labels_are_resized_to_the_nearest() -> None:
    labels = torch.arange(64).reshape(1, 8, 8) % 20
    labels[0, 4, 4] = 255
    small = pixel_labels(samples_of(labels), (4, 2), labels.device)
    assert torch.equal(small, labels.where(labels != 255, IGNORED)[:, ::2, ::4])
    assert pixel_labels([SimpleNamespace()], (4, 2), labels.device) is None


def test_ignore_index_is_read_per_image_and_uint8_labels_are_supported() -> None:
    samples = samples_of(torch.tensor([[[1, 255]], [[1, 255]]], dtype=torch.uint8))
    samples[1].metainfo = dict(ignore_index=1)
    found = pixel_labels(samples, (1, 2), torch.device('cpu'))
    assert found.tolist() == [[[1, IGNORED]], [[IGNORED, 255]]]


def test_ignore_index_is_read_from_mmseg_samples() -> None:
    sample = SegDataSample(metainfo=dict(ignore_index=7))
    sample.gt_sem_seg = PixelData(data=torch.tensor([[[7, 255]]]))
    found = pixel_labels([sample], (1, 2), torch.device('cpu'))
    assert found.tolist() == [[[IGNORED, 255]]]


def test_classes_are_renumbered_per_image() -> None:
    labels = torch.tensor([[[5, 900], [IGNORED, 5]], [[3, 3], [0, 255]]])
    found = number_classes(labels)
    assert found.tolist() == [[[0, 1], [IGNORED, 0]], [[1, 1], [0, 2]]]
    nothing = torch.full((1, 2, 2), IGNORED)
    assert torch.equal(number_classes(nothing), nothing)


@pytest.mark.parametrize('size', [(7, 5), (13, 31), (40, 3), (64, 64), (1, 100)])
def test_nearest_labels_are_those_of_interpolate(size: tuple) -> None:
    labels = torch.arange(40 * 53).reshape(1, 40, 53)
    found = pixel_labels(samples_of(labels + 1000), size, labels.device)
    expected = functional.interpolate(labels[None].float() + 1000, size)[0].long()
    assert torch.equal(found, expected)
