"""`check_loss`: the contract that every distillation loss has to keep."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from kdtoolbox.losses.detection.targets import DenseTargets


def check_loss(
    loss: nn.Module,
    student: Tensor,
    teacher: Tensor,
    *,
    zero_at_equality: bool = True,
    gradcheck: bool = True,
    **inputs: Any,
) -> None:
    """Check the contract that every distillation loss has to keep.

    - The value is a finite, non-negative, reproducible scalar in the dtype of the maps
      (at least float32) and linear in `loss_weight`.
    - Only the student gets a gradient. No input is modified.
    - Half precision, autocast and the memory layout do not change the result.
    - Value and gradient stay finite for one image, 1x1 maps, images without objects and
      objects smaller than a pixel.

    Each evaluation uses a new copy of the loss and the same random seed, so that random
    masks and memories are equal.

    Args:
        loss: A built loss with a `loss_weight` other than 0.
        student: A floating point map (N, C, H, W) with N > 1, or rows (N, K). A few
            hundred values keep the numerical gradient fast.
        teacher: The input of the teacher; not equal to `student`.
        zero_at_equality: Whether equal maps must give 0 without a gradient. Set it to
            False for losses with random or learned parts.
        gradcheck: Whether to compare with numerical gradients. Set it to False for
            losses that are not differentiable at the given maps.
        **inputs: More arguments of `loss.forward`. A list of N entries, such as
            `data_samples`, is taken as one entry per image. Samples with
            ``gt_instances`` are also checked without objects; ``metainfo`` is optional.

    Raises:
        AssertionError: If the loss breaks the contract; the message names the part.

    Example:
        >>> from kdtoolbox.losses import PKDLoss
        >>> student = torch.arange(48.0).sin().reshape(2, 3, 4, 2)
        >>> check_loss(PKDLoss(), student, student.cos())
    """
    case = _Case(loss, student.detach().double(), teacher.detach().double(), inputs)
    _check_value(case)
    _check_gradient(case, gradcheck)
    _check_loss_weight(case)
    _check_precision(case)
    _check_layout(case)
    _check_small_maps(case)
    _check_ground_truth(case)
    if zero_at_equality:
        _check_equality(case)


class _Case:
    """A loss with its inputs; each evaluation uses a copy of the loss."""

    def __init__(
        self, loss: nn.Module, student: Tensor, teacher: Tensor, inputs: dict[str, Any]
    ) -> None:
        self.loss = loss
        # One per dtype, since each evaluation copies all but the parameters.
        self.losses = {
            dtype: copy.deepcopy(loss).to(dtype)
            for dtype in (torch.float32, torch.float64)
        }
        self.student = student
        self.teacher = teacher
        self.inputs = inputs

    def value(self, student: Tensor, teacher: Tensor, **changes: Any) -> Tensor:
        """Return the sum of the terms; `changes` replace inputs or set attributes."""
        loss = self.losses[torch.promote_types(student.dtype, torch.float32)]
        loss = copy.deepcopy(loss, {id(x): x for x in loss.parameters()})
        inputs = {k: changes.pop(k, v) for k, v in self.inputs.items()}
        for name, attribute in changes.items():
            setattr(loss, name, attribute)
        with torch.random.fork_rng():
            # torch.manual_seed also asks for the other kinds of devices, which is slow.
            torch.default_generator.manual_seed(0)
            if student.is_cuda:
                torch.cuda.manual_seed(0)
            output = loss(student, teacher, **inputs)
        terms = list(output.values()) if isinstance(output, Mapping) else [output]
        _expect(all(term.dim() == 0 for term in terms), 'the loss is not a scalar')
        return torch.stack(terms).sum()

    def gradient(self, student: Tensor, teacher: Tensor, **changes: Any) -> Tensor:
        # A clone would make a strided map contiguous.
        student = student.detach().requires_grad_()
        self.value(student, teacher, **changes).backward()
        if student.grad is None:
            raise AssertionError('the student gets no gradient')
        return student.grad


def _expect(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _expect_close(
    actual: Tensor, expected: Tensor, rtol: float, atol: float, message: str
) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol, msg=lambda m: f'{message}: {m}'
    )


def _check_value(case: _Case) -> None:
    for dtype in (torch.float64, torch.float32):
        student, teacher = case.student.to(dtype), case.teacher.to(dtype)
        before = student.clone(), teacher.clone()
        value = case.value(student, teacher)
        _expect(value.isfinite(), f'the value {value} is not finite')
        _expect(value >= 0, f'the value {value} is negative')
        _expect(value.dtype == dtype, f'{dtype} in, {value.dtype} out')
        _expect(value.device == student.device, 'the value left the device')
        _expect(
            torch.equal(student, before[0]) and torch.equal(teacher, before[1]),
            'an input was modified in place',
        )
        _expect(case.value(student, teacher) == value, 'two runs differ')


def _check_gradient(case: _Case, gradcheck: bool) -> None:
    teacher = case.teacher.clone().requires_grad_()
    gradient = case.gradient(case.student, teacher)
    _expect(teacher.grad is None, 'the teacher gets a gradient')
    _expect(gradient.isfinite().all(), 'the gradient is not finite')
    _expect(gradient.any(), 'the gradient is 0 everywhere')
    if gradcheck:
        student = case.student.clone().requires_grad_()
        try:
            torch.autograd.gradcheck(lambda x: case.value(x, case.teacher), student)
        except GradcheckError as error:
            raise AssertionError(f'the gradient is wrong: {error}') from error


def _check_loss_weight(case: _Case) -> None:
    weight: Any = case.loss.loss_weight
    value = case.value(case.student, case.teacher)
    zero = case.value(case.student, case.teacher, loss_weight=0.0)
    _expect(zero == 0, f'loss_weight=0 gives {zero}')
    triple = case.value(case.student, case.teacher, loss_weight=3 * weight)
    _expect_close(triple, 3 * value, 1e-9, 1e-12, 'not linear in loss_weight')


def _check_precision(case: _Case) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        half = case.student.to(dtype), case.teacher.to(dtype)
        full = half[0].float(), half[1].float()
        expected = case.value(*full), case.gradient(*full)
        for autocast in (False, True):
            with torch.autocast(half[0].device.type, torch.bfloat16, autocast):
                value, gradient = case.value(*half), case.gradient(*half)
            message = f'{dtype} maps, autocast {"on" if autocast else "off"}'
            _expect_close(value, expected[0], 1e-2, 1e-6, message)
            atol = 1e-2 * float(expected[1].abs().max())
            _expect_close(gradient.float(), expected[1], 1e-2, atol, message)


def _check_layout(case: _Case) -> None:
    value = case.value(case.student, case.teacher)
    gradient = case.gradient(case.student, case.teacher)
    strided = [
        torch.stack([x, x], dim=-1)[..., 0] for x in (case.student, case.teacher)
    ]
    layouts = {'strided': (strided[0], strided[1])}
    if case.student.dim() == 4:
        last = case.student.to(memory_format=torch.channels_last)
        layouts['channels_last'] = (last, case.teacher)
    for name, maps in layouts.items():
        _expect_close(case.value(*maps), value, 1e-9, 1e-12, f'{name} maps')
        actual = case.gradient(*maps)
        _expect_close(actual, gradient, 1e-7, 1e-12, f'gradient of {name} maps')


def _check_small_maps(case: _Case) -> None:
    count = len(case.student)
    lists = {k: v for k, v in case.inputs.items() if isinstance(v, list)}
    first = {k: v[:1] for k, v in lists.items() if len(v) == count}
    cuts: list[tuple[str, tuple, dict]] = [('one image', (slice(1),), first)]
    if case.student.dim() == 4:
        cell = (slice(None), slice(None), slice(1), slice(1))
        cuts += [('a 1x1 map', cell, {}), ('one value', (slice(1), *cell[1:]), first)]
    for name, cut, changes in cuts:
        maps = case.student[cut], case.teacher[cut]
        _expect(case.value(*maps, **changes).isfinite(), f'{name} is not finite')
        gradient = case.gradient(*maps, **changes)
        _expect(gradient.isfinite().all(), f'the gradient of {name} is not finite')


def _check_ground_truth(case: _Case) -> None:
    samples = case.inputs.get('data_samples', [])
    samples = [x for x in samples if hasattr(x, 'gt_instances')]
    targets = case.inputs.get('targets')
    without: dict[str, Any] = {}
    cuts = {'no ground truth': without}
    if isinstance(targets, DenseTargets):
        without['targets'] = _without_objects(targets)
    if samples:
        without['data_samples'] = [_with_boxes(sample, None) for sample in samples]
        tiny = [_with_boxes(sample, 0.25) for sample in samples]
        cuts['boxes below a pixel'] = dict(data_samples=tiny)
    for name, changes in cuts.items():
        if changes:
            value = case.value(case.student, case.teacher, **changes)
            _expect(value.isfinite(), f'{name}: the value {value} is not finite')
            gradient = case.gradient(case.student, case.teacher, **changes)
            _expect(gradient.isfinite().all(), f'{name}: the gradient is not finite')


def _with_boxes(sample: Any, size: float | None) -> SimpleNamespace:
    """Return a sample whose boxes have sides of `size` pixels, or no boxes if None."""
    boxes, labels = sample.gt_instances.bboxes, sample.gt_instances.labels
    if size is None:
        boxes, labels = boxes[:0], labels[:0]
    else:
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        boxes = torch.cat([centers - size / 2, centers + size / 2], 1)
    instances = SimpleNamespace(bboxes=boxes, labels=labels)
    metainfo = getattr(sample, 'metainfo', {})
    return SimpleNamespace(gt_instances=instances, metainfo=metainfo)


def _without_objects(targets: DenseTargets) -> DenseTargets:
    return replace(
        targets,
        labels=[torch.full_like(x, targets.num_classes) for x in targets.labels],
        gt_inds=[torch.full_like(x, -1) for x in targets.gt_inds],
    )


def _check_equality(case: _Case) -> None:
    scale = case.value(case.student, case.teacher)
    value = case.value(case.student, case.student.clone())
    _expect(value.abs() <= 1e-9 * scale, f'equal maps give {value}')
    scale = case.gradient(case.student, case.teacher).abs().max()
    gradient = case.gradient(case.student, case.student.clone()).abs().max()
    _expect(gradient <= 1e-7 * scale, f'equal maps give a gradient of {gradient}')
