from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from kdtoolbox.visualization.label_maps import RIGHT, WRONG, draw_errors, draw_labels
from kdtoolbox.visualization.predictions import draw_predictions, evaluating, predict
from kdtoolbox.visualization.scenes import Scene

Toy = SimpleNamespace
IMAGE = np.full((300, 400, 3), 100, np.uint8)


def label_map(labels: np.ndarray) -> PixelData:
    return PixelData(data=torch.from_numpy(labels)[None])


def test_predictions_leave_the_model_as_it_was(toy: Toy) -> None:
    model = toy.build(toy.segmentor()).train()
    model.backbone.eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with evaluating(model):
        torch.rand(3)
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_predicted_boxes_are_in_pixels_of_the_inputs(toy: Toy) -> None:
    model = toy.build(toy.gfl())
    batch = model.data_preprocessor(toy.det_data(), training=True)
    for sample in batch['data_samples']:
        # As if the images had been resized from images half as large.
        sample.set_metainfo(dict(scale_factor=(2.0, 2.0), ori_shape=(32, 32)))
    found = predict(model, batch['inputs'], batch['data_samples'])
    boxes = torch.cat([sample.pred_instances.bboxes for sample in found])
    assert 32 < boxes.max() <= 64
    assert batch['data_samples'][0].scale_factor == (2.0, 2.0)
    assert 'pred_instances' not in batch['data_samples'][0]


def test_predicted_labels_are_as_large_as_the_image(toy: Toy) -> None:
    model = toy.build(toy.segmentor())
    data = toy.seg_data(sizes=((48, 64), (48, 64)))
    batch = model.data_preprocessor(data, training=True)
    samples = batch['data_samples']
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=(100, 100), flip=True))
    [first, _] = predict(model, batch['inputs'], samples)
    assert first.pred_sem_seg.shape == (48, 64)


def test_errors_are_shown_where_they_are() -> None:
    truth = np.zeros((300, 400), int)
    labels = truth.copy()
    labels[:, 200:] = 1
    truth[:50] = 255
    panel = draw_errors(IMAGE, labels, truth, ignored=255).astype(int)
    assert np.abs(panel[100, 10] - (np.array(RIGHT) * 0.6 + 40)).max() <= 1
    assert np.abs(panel[100, 390] - (np.array(WRONG) * 0.6 + 40)).max() <= 1
    assert (panel[10] == 40).all()


def test_labels_beyond_the_palette_are_not_drawn() -> None:
    labels = np.zeros((300, 400), int)
    labels[:, 200:] = 255
    panel = draw_labels(IMAGE, labels, [(200, 0, 0)])
    assert (panel[0, 0] == (160, 40, 40)).all()
    assert (panel[0, -1] == 100).all()


def test_rows_of_label_maps_count_the_right_pixels() -> None:
    truth = np.zeros((300, 400), np.int64)
    labels = truth.copy()
    labels[:75] = 1
    sample = SegDataSample(gt_sem_seg=label_map(truth))
    student = SegDataSample(pred_sem_seg=label_map(labels))
    meta = dict(classes=('road', 'sky'), palette=[[9, 9, 9], [0, 0, 200]])
    picture = draw_predictions(
        Scene(0, IMAGE, sample, (300, 400)), dict(student=student), meta
    )
    titles = [[title for title, _ in row] for row in picture.rows]
    assert titles == [
        ['ground truth', 'student'],
        [''],
        ['input', 'student: 75.0% of pixels right'],
    ]


def test_rows_of_boxes_count_true_and_false_predictions(toy: Toy) -> None:
    [sample] = toy.det_data(sizes=((64, 64),))['data_samples']
    found = sample.clone()
    found.pred_instances = InstanceData(
        bboxes=sample.gt_instances.bboxes.repeat(2, 1),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.8]),
    )
    image = np.zeros((64, 64, 3), np.uint8)
    picture = draw_predictions(
        Scene(0, image, sample, (64, 64)), dict(student=found), dict(classes=['a'])
    )
    assert [title for title, _ in picture.rows[0]] == [
        'ground truth: 1',
        'student: 1 true, 1 false',
    ]


@pytest.mark.parametrize('meta', [dict(classes=('a',)), {}])
def test_a_sample_without_truth_gives_no_picture(meta: dict) -> None:
    scene = Scene(0, IMAGE, SegDataSample(), (300, 400))
    assert draw_predictions(scene, {}, meta) is None
