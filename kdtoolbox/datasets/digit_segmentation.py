"""The DigitScenes data set for mmseg. For mmdet, ``CocoDataset`` reads it."""

from mmseg.datasets import CityscapesDataset

from kdtoolbox.registry import DATASETS


@DATASETS.register_module()
class DigitScenesDataset(CityscapesDataset):
    """mmseg's ``CityscapesDataset`` with the classes of DigitScenes.

    mmseg raises an error if a config changes the class names of a data set to others.
    """

    METAINFO = dict(
        classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'background'),
        palette=[
            [230, 25, 75],
            [60, 180, 75],
            [255, 225, 25],
            [67, 99, 216],
            [245, 130, 49],
            [145, 30, 180],
            [66, 212, 244],
            [240, 50, 230],
            [191, 239, 69],
            [250, 190, 212],
            [40, 40, 40],
        ],
    )
