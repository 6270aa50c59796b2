"""Pixels with the label that a task ignores are never distilled."""

import copy
import inspect
import sys
from typing import Any

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor, nn

from kdtoolbox import losses
from kdtoolbox.losses.examples import Example, Sizes, examples_of, loss_classes

SIZE, WIDTH = (6, 8), 5


def reads_pixels(kind: Any) -> bool:
    """Return whether a loss class reads labels of pixels."""
    names = vars(sys.modules[kind.__module__])
    inputs = inspect.signature(kind.forward).parameters
    return 'data_samples' in inputs and (
        'read_logits' in names or 'pixel_labels' in names
    )


def example_on_maps(kind: type[nn.Module]) -> Example:
    """Return the first example of a loss class with a wire of maps."""
    return next(x for x in examples_of(kind) if x.student.endswith('map'))


READERS = {
    name: example_on_maps(kind)
    for name, kind in loss_classes().items()
    if reads_pixels(kind)
}
LOGITS = [name for name in READERS if READERS[name].student == 'class logits map']
FEATURES = [name for name in READERS if name not in LOGITS]
SMALL: dict[str, dict[str, Any]] = {
    'CIRKDMemoryLoss': dict(
        pixel_slots=20, region_slots=5, pixel_keys=30, region_keys=20
    ),
    'CIRKDMiniBatchLoss': dict(pool_size=2),
    'CTKDLoss': dict(ramp_iterations=2),
}
"""Arguments for small maps and few iterations."""

WITHOUT_CLASSES = [name for name in LOGITS if name != 'SKDHolisticLoss']
"""Losses without weights of their own for each class."""

HOLES = torch.zeros(2, *SIZE, dtype=torch.bool)
HOLES[0, :2, 1:4], HOLES[0, 4, 6], HOLES[1, 3:, 3], HOLES[1, 0] = True, True, True, True


def build(kind: str, classes: int) -> Any:
    torch.manual_seed(0)
    sizes = Sizes(channels=WIDTH, teacher_channels=WIDTH, classes=classes)
    arguments = READERS[kind].arguments(sizes) | SMALL.get(kind, {})
    loss = getattr(losses, kind)(**arguments).double()
    if kind == 'SKDHolisticLoss':
        torch.nn.init.normal_(loss.critic.score.weight)
    # In training mode, batch norm statistics would contain the ignored pixels.
    return loss.eval() if kind == 'CIRKDMemoryLoss' else loss


def maps(kind: str, classes: int) -> list[Tensor]:
    shape = (2, classes if kind in LOGITS else WIDTH, *SIZE)
    return [waves(shape, 0.37, 0.11).double(), waves(shape, 0.23, 0.17, 0.4).double()]


def run(loss: Any, pair: list[Tensor], samples: list, **wires: Tensor) -> list[Tensor]:
    """Return the value of a copy of the loss, and the gradient of the student."""
    student = pair[0].clone().requires_grad_()
    torch.manual_seed(1)
    found = copy.deepcopy(loss)(student, pair[1], data_samples=samples, **wires)
    value = sum(found.values()) if isinstance(found, dict) else found
    value.backward()
    return [value.detach(), student.grad]


def wires_of(kind: str, classes: int) -> dict[str, Tensor]:
    if 'features' not in READERS[kind].wires:
        return {}
    features = waves((2, WIDTH, *SIZE), 0.31, 0.19).double()
    return dict(
        features=features, classifier=waves((classes, WIDTH), 0.7, 0.3).double()
    )


def labels_of(ignored: int) -> Tensor:
    # Classes 1 to 6 and 8: none of the labels that a test below ignores.
    labels = 1 + torch.arange(96).reshape(2, *SIZE) // 5 % 7
    return labels.where(labels < 7, 8).masked_fill(HOLES, ignored)


def samples_with(ignored: int | None, labels: Tensor) -> list:
    samples = samples_of(labels)
    for sample in samples:
        if ignored is not None:
            sample.metainfo = dict(ignore_index=ignored)
    return samples


def test_losses_on_labels_of_pixels_are_found() -> None:
    assert {'KDLoss', 'DKDLoss', 'FAKDLoss', 'SKDHolisticLoss'} <= set(LOGITS)
    assert {'CIRKDMemoryLoss', 'CIRKDMiniBatchLoss', 'IDDLoss', 'IFVDLoss'} <= set(
        FEATURES
    )
    assert not {'ChannelDistillationLoss', 'DSDPixelLoss'} & READERS.keys()


@pytest.mark.parametrize('ignored', [0, 255, 7, -100])
@pytest.mark.parametrize('kind', [*LOGITS, *FEATURES])
def test_ignored_pixels_change_neither_value_nor_gradient(
    kind: str, ignored: int
) -> None:
    loss, pair, wires = build(kind, 9), maps(kind, 9), wires_of(kind, 9)
    samples = samples_with(ignored, labels_of(ignored))
    expected = run(loss, pair, samples, **wires)
    assert expected[1].any()
    assert not expected[1].movedim(1, -1)[HOLES].any()
    other = 7 * waves((*HOLES.shape, 1), 0.9, 0.4).double()
    for side in (0, 1):
        changed = list(pair)
        # Also change the order of the channels; some losses compare only that.
        away = (other - 2 * pair[side].movedim(1, -1)).movedim(-1, 1)
        changed[side] = away.where(HOLES[:, None], pair[side])
        torch.testing.assert_close(run(loss, changed, samples, **wires), expected)
    if wires:
        features = wires['features'].masked_fill(HOLES[:, None], 9.0)
        found = run(loss, pair, samples, **dict(wires, features=features))
        torch.testing.assert_close(found, expected)
    usual = samples_with(None, labels_of(255))
    assert all(map(torch.equal, run(loss, pair, usual, **wires), expected))


@pytest.mark.parametrize('kind', [*LOGITS, *FEATURES])
def test_what_is_not_ignored_counts(kind: str) -> None:
    loss, pair, wires = build(kind, 9), maps(kind, 9), wires_of(kind, 9)
    expected = run(loss, pair, samples_with(7, labels_of(7)), **wires)
    # One loss compares only pixels at which the teacher is right.
    labels = pair[1].argmax(1).where(HOLES, labels_of(7))
    found = run(loss, pair, samples_with(-100, labels), **wires)
    assert found[1].movedim(1, -1)[HOLES].any()
    assert not torch.equal(found[0], expected[0])


@pytest.mark.parametrize('ignored', [0, -100])
@pytest.mark.parametrize('kind', [*WITHOUT_CLASSES, 'IDDLoss', 'IFVDLoss'])
def test_255_is_a_class_like_any_other(kind: str, ignored: int) -> None:
    """Renumber 300 classes and expect the same value and gradient."""
    order = torch.arange(300)
    order[[1, 2, 3, 255, 256, 299]] = torch.tensor([255, 256, 299, 1, 2, 3])
    pair, wires = maps(kind, 300), wires_of(kind, 300)
    labels = labels_of(ignored)
    expected = run(build(kind, 300), pair, samples_with(ignored, labels), **wires)
    labels = order[labels.clamp(min=0)].masked_fill(HOLES, ignored)
    if kind in LOGITS:
        pair = [x[:, order] for x in pair]
    if wires:
        wires['classifier'] = wires['classifier'][order]
    found = run(build(kind, 300), pair, samples_with(ignored, labels), **wires)
    if kind in LOGITS:
        found[1] = found[1][:, order]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('kind', ['IDDLoss', 'IFVDLoss'])
def test_infinite_features_of_ignored_pixels_change_nothing(kind: str) -> None:
    samples, pair = samples_with(7, labels_of(7)), maps(kind, 9)
    expected = run(build(kind, 9), pair, samples)
    for side in (0, 1):
        broken = [x.clone() for x in pair]
        broken[side].movedim(1, -1)[HOLES] = torch.inf
        assert all(map(torch.equal, run(build(kind, 9), broken, samples), expected))
