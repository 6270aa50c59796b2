from itertools import combinations

import numpy as np
import torch
from mmengine.structures import InstanceData

from kdtoolbox.visualization import boxes
from kdtoolbox.visualization.boxes import (
    FALSE,
    TRUE,
    Mark,
    draw_marks,
    match_boxes,
    predicted_marks,
)

IMAGE = np.full((300, 400, 3), 90, np.uint8)
TRUTH = torch.tensor([[40.0, 40.0, 100.0, 100.0], [200.0, 100.0, 300.0, 200.0]])


def has(panel: np.ndarray, colour: tuple) -> np.ndarray:
    return (panel == colour).all(2)


def test_a_prediction_is_true_by_class_and_overlap_and_once() -> None:
    found = torch.stack([TRUTH[0], TRUTH[0], TRUTH[1], TRUTH[1] + 60, TRUTH[1]])
    labels = torch.tensor([0, 0, 2, 1, 1])
    right = match_boxes(found, labels, TRUTH, torch.tensor([0, 1]))
    # Found again, another class, too little overlap.
    assert right.tolist() == [True, False, False, False, True]
    nothing = torch.zeros(0, 4)
    assert match_boxes(found, labels, nothing, labels[:0]).tolist() == [False] * 5
    assert match_boxes(nothing, labels[:0], TRUTH, labels[:2]).shape == (0,)


def test_true_and_false_predictions_have_their_colours() -> None:
    truth = InstanceData(bboxes=TRUTH, labels=torch.tensor([0, 1]))
    predicted = InstanceData(
        bboxes=TRUTH.flip(0),
        labels=torch.tensor([0, 0]),
        scores=torch.tensor([0.4, 0.9]),
    )
    marks = predicted_marks(predicted, truth, ['cat', 'dog'])
    assert [mark.text for mark in marks] == ['cat: 0.90', 'cat: 0.40']
    panel = draw_marks(IMAGE, marks)
    # The left edges, below the corners.
    assert has(panel, TRUE)[60:90, 40].all()
    assert has(panel, FALSE)[120:180, 200].all()
    assert not has(panel, FALSE)[:, :150].any()
    assert not has(panel, TRUE)[:, 180:].any()


def test_weak_predictions_are_left_out() -> None:
    truth = InstanceData(bboxes=TRUTH, labels=torch.tensor([0, 1]))
    predicted = InstanceData(
        bboxes=TRUTH, labels=torch.tensor([0, 5]), scores=torch.tensor([0.29, 0.31])
    )
    [mark] = predicted_marks(predicted, truth, ['cat'])
    assert mark.text == 'class 5: 0.31'


def test_boxes_are_scaled_with_small_images() -> None:
    mark = Mark((10.0, 20.0, 30.0, 60.0), '', TRUE)
    panel = draw_marks(np.zeros((128, 128, 3), np.uint8), [mark])
    rows, columns = np.nonzero(has(panel, TRUE))
    assert (rows.min(), rows.max()) == (40, 120)
    assert (columns.min(), columns.max()) == (20, 60)


def test_labels_do_not_overlap(monkeypatch) -> None:
    placed = []
    place = boxes.place_label
    monkeypatch.setattr(
        boxes, 'place_label', lambda *args: placed.append(place(*args)) or placed[-1]
    )
    near = [(50.0 + 3 * i, 90.0, 110.0 + 3 * i, 170.0) for i in range(6)]
    draw_marks(IMAGE, [Mark(box, 'cat: 0.50', TRUE) for box in near])
    assert len(placed) == 6
    for a, b in combinations(placed, 2):
        assert not boxes.overlap(a, b)
    for x1, y1, x2, y2 in placed:
        assert 0 <= x1 < x2 < 400
        assert 0 <= y1 < y2 < 300


def test_a_label_without_room_is_left_out() -> None:
    panel = np.zeros((40, 300, 3), np.uint8)
    box = (0.0, 0.0, 290.0, 39.0)
    one, many = (
        draw_marks(panel, [Mark(box, 'a long label ' * 3, TRUE)] * count)
        for count in (1, 9)
    )
    assert has(many, TRUE).sum() < 3 * has(one, TRUE).sum()
