import pytest
import torch
from golden import waves
from naive_pooling import naive_pool
from torch import Tensor

from kdtoolbox.losses.detection.pooling import pool_boxes

STRIDES = [8, 16, 32]
# Boxes with sides below 224 pixels belong to stride 8, below 448 to 16, others to 32.
BOXES = torch.tensor(
    [
        [[0.0, 0, 223, 223], [3, 5, 230, 229], [0, 0, 512, 512], [100, 90, 100, 91]],
        [[11, 7, 25, 500], [500, 490, 512, 512], [0, 3, 512, 400], [9, 9, 90, 90]],
    ]
)
LEVELS = [0, 1, 2, 0, 0, 0, 2, 0]
EXIST = torch.tensor([[True] * 4, [True] * 3 + [False]])


def pyramid(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(2, 3, 512 // stride, 512 // stride) for stride in STRIDES]
    return [waves(shape, 0.37, 0.0113).to(dtype).requires_grad_() for shape in shapes]


def test_features_and_gradients_equal_naive_loops() -> None:
    levels, reference = pyramid(), pyramid()
    pooled = pool_boxes(levels, STRIDES, BOXES, EXIST, cells=3)
    rows = []
    for index, (box, home) in enumerate(
        zip(BOXES.flatten(0, 1).tolist(), LEVELS, strict=True)
    ):
        maps = reference[home][index // 4]
        exists = bool(EXIST.flatten()[index])
        rows.append(exists * naive_pool(maps, STRIDES[home], box, cells=3))
    expected = torch.stack(rows)
    torch.testing.assert_close(pooled.flatten(0, 1), expected, rtol=1e-9, atol=1e-12)
    probe = waves(tuple(expected.shape), 0.7, 0.3).double()
    (pooled.flatten(0, 1) * probe).sum().backward()
    (expected * probe).sum().backward()
    for found, naive in zip(levels, reference, strict=True):
        torch.testing.assert_close(found.grad, naive.grad, rtol=0, atol=1e-12)
        assert naive.grad.any()


def test_features_equal_roi_align_of_mmcv() -> None:
    from mmcv.ops import roi_align

    levels = pyramid(torch.float32)
    pooled = pool_boxes(levels, STRIDES, BOXES, EXIST).flatten(0, 1)
    for index, home in enumerate(LEVELS[:7]):
        roi = torch.cat([torch.tensor([index // 4]), BOXES.flatten(0, 1)[index]])
        stride = STRIDES[home]
        [expected] = roi_align(levels[home], roi[None], 10, 1 / stride, 2, 'avg', True)
        torch.testing.assert_close(pooled[index], expected.flatten(), rtol=0, atol=1e-4)


@pytest.mark.parametrize('first', [4, 8])
def test_a_box_is_read_at_the_same_stride_in_each_pyramid(first: int) -> None:
    strides = [first * 2**level for level in range(4)]
    levels = [torch.full((1, 1, 64, 64), float(stride)) for stride in strides]
    sides = torch.tensor([112.0, 224.0, 225, 447, 448])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], 1)[None]
    exist = torch.ones(1, 5) > 0
    found = pool_boxes(levels, strides, boxes, exist, cells=1).flatten().tolist()
    assert found == [8.0, 16.0, 16.0, 16.0, 32.0]
