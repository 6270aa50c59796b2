import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from kdtoolbox.visualization import draw_sample

IMAGE = np.full((32, 48, 3), 90, np.uint8)


def test_a_box_is_drawn_where_it_is() -> None:
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=('digit',), palette=[(255, 0, 0)])
    boxes = torch.tensor([[4.0, 4.0, 20.0, 28.0]])
    instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0]), scores=torch.tensor([0.9])
    )
    sample = DetDataSample(pred_instances=instances)
    drawn = draw_sample(visualizer, IMAGE, sample, scale=4)
    assert drawn.shape == (128, 192, 3)
    assert np.any(drawn[30:100, 16] != 90)
    assert np.all(drawn[:, 100:] == 90)
    assert torch.equal(sample.pred_instances.bboxes, boxes)


def test_a_label_map_is_drawn_where_it_is() -> None:
    visualizer = SegLocalVisualizer(alpha=1.0)
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[[9, 9, 9], [200, 0, 0]])
    labels = torch.zeros(1, 32, 48, dtype=torch.long)
    labels[:, 16:] = 1
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    drawn = draw_sample(visualizer, IMAGE, sample, truth=True, scale=2)
    assert drawn.shape == (64, 96, 3)
    assert (drawn[2, 2] == 9).all()
    assert (drawn[-2, -2] == (200, 0, 0)).all()
    assert sample.gt_sem_seg.data.shape == (1, 32, 48)
