"""Draw a sample with the visualizer of its library."""

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer


def draw_sample(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: BaseDataElement,
    truth: bool = False,
    scale: int = 3,
) -> np.ndarray:
    """Draw the predictions of a sample, or its ground truth, on the image.

    Args:
        visualizer: Visualizer of mmdet or mmseg with ``dataset_meta`` set.
        image: RGB image (H, W, 3) of bytes.
        sample: Data sample of mmdet or mmseg for this image.
        truth: Draw the ground truth rather than the predictions.
        scale: Enlargement, so that labels of small images can be read.

    Returns:
        RGB image (scale * H, scale * W, 3).
    """
    height, width = (scale * side for side in image.shape[:2])
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    visualizer.add_datasample(
        'sample', large, _enlarged(sample, scale), draw_gt=truth, draw_pred=not truth
    )
    return visualizer.get_image()


def _enlarged(sample: BaseDataElement, scale: int) -> BaseDataElement:
    sample = sample.clone().cpu()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = getattr(sample, name)
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
            instances.bboxes = instances.bboxes * scale
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            labels = getattr(sample, name).data
            labels = labels.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
            # An element refuses data of another size, so make a new one.
            sample.set_field(type(getattr(sample, name))(data=labels), name)
    return sample
