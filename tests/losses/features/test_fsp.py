import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.fsp import FSPLoss, flow_matrix
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
STUDENT_END = waves((2, 3, 3, 3), 0.31, 0.13)
TEACHER_END = waves((2, 3, 3, 3), 0.19, 0.29, 0.7)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('fsp', 'same_size', dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    difference = flow_matrix(*students) - flow_matrix(*golden.inputs['teacher'])
    # torchdistill sums the norms of the columns instead of the squares.
    loss = difference.norm(dim=1).sum() / len(difference)
    assert_golden(loss, students, golden)


def naive_flow(start: Tensor, end: Tensor) -> Tensor:
    """Compute the matrix of one image entry by entry, for maps of equal size."""
    positions = start[0].numel()
    rows = [torch.stack([(a * b).sum() / positions for b in end]) for a in start]
    return torch.stack(rows)


def test_naive_loops() -> None:
    students = [STUDENT.double().requires_grad_() for _ in range(2)]
    teacher, teacher_end = TEACHER.double(), TEACHER_END.double()
    pooled = [
        torch.stack(
            [
                torch.stack([x[..., 2 * i : 2 * i + 2, a:b].amax((2, 3)) for a, b in w])
                for i in range(3)
            ]
        ).permute(2, 3, 0, 1)
        # Five columns are pooled to three overlapping cells.
        for w in [[(0, 2), (1, 4), (3, 5)]]
        for x in (students[1], teacher)
    ]
    end = STUDENT_END.double()
    errors = [
        (naive_flow(s, se) - naive_flow(t, te)) ** 2
        for s, se, t, te in zip(pooled[0], end, pooled[1], teacher_end, strict=True)
    ]
    expected = 50 * torch.stack(errors).mean()
    value = FSPLoss(loss_weight=50.0)(students[0], teacher, end, teacher_end)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(students[0].grad, students[1].grad, rtol=1e-8, atol=0)


def test_larger_map_may_be_the_later_layer() -> None:
    flow = flow_matrix(STUDENT_END, STUDENT)
    torch.testing.assert_close(flow, flow_matrix(STUDENT, STUDENT_END).mT)


def test_equal_flows_give_zero_and_the_teacher_gets_no_gradient() -> None:
    maps = [x.clone().requires_grad_() for x in (STUDENT, STUDENT, STUDENT_END)]
    value = FSPLoss()(maps[0], maps[1], maps[2], STUDENT_END)
    assert value == 0
    FSPLoss()(maps[0], maps[1] + 1, maps[2], STUDENT_END).backward()
    assert maps[0].grad.any()
    assert maps[2].grad.any()
    assert maps[1].grad is None


def test_contract() -> None:
    ends = dict(student_end=STUDENT_END, teacher_end=TEACHER_END)
    # Equal maps do not give 0 here, because the ends differ.
    check_loss(_OneImage(), STUDENT, TEACHER, zero_at_equality=False, **ends)
    check_loss(_OneImage(), STUDENT, TEACHER, student_end=None, teacher_end=None)


class _OneImage(FSPLoss):
    """Crops the ends to the batch size of the maps; None stands for the maps.

    `check_loss` crops the maps to one image, but no other wire.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        student_end: Tensor | None,
        teacher_end: Tensor | None,
    ) -> Tensor:
        student_end = student if student_end is None else student_end[: len(student)]
        teacher_end = teacher if teacher_end is None else teacher_end[: len(teacher)]
        ends = student_end.to(student.dtype), teacher_end.to(teacher.dtype)
        return super().forward(student, teacher, *ends)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 3, 3, 3\) and .*\(2, 4, 6, 5\) differ'):
        FSPLoss()(STUDENT, TEACHER, STUDENT_END, TEACHER)
    with pytest.raises(ValueError, match=r'ConvConnector.*student wire of this loss'):
        FSPLoss()(STUDENT, TEACHER[:1], STUDENT_END, TEACHER_END)
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        FSPLoss()(STUDENT[0], TEACHER[0], STUDENT_END, TEACHER_END)
