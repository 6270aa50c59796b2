"""Every loss and connector checks the numbers that it is built with."""

import inspect
import math
import re
from typing import Any

import pytest
import torch
from connector_arguments import REQUIRED
from torch import nn

from kdtoolbox import connectors, losses
from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.losses.examples import Sizes, examples_of, loss_classes
from kdtoolbox.losses.logits.class_logits import check_tau

FURTHER: dict[str, list[Any]] = {
    'iou_exponent': [1.5],
    'kernel_size': [2],
    'mask_ratio': [1.0, 65],
    'scale': [0.0, 2.0],
    'steps': [501],
    'threshold': [1.0],
    'window': [10],
}
"""Further bad values: above the range of an argument, or between allowed values."""

NOT_ZERO = ('tau', 'margin', 'radius', 'max_val', 'init_variance')
ZERO = ('skip', 'student_mask_warmup')
CLASSES = [
    kind
    for module in (losses, connectors)
    for kind in map(vars(module).get, module.__all__)
    if inspect.isclass(kind) and issubclass(kind, nn.Module)
]


def bad_values(name: str, hint: str) -> list[Any]:
    """Return bad values for an argument of this name and type."""
    if 'float' in hint:
        bad = [-1.0, math.nan, math.inf, *[0.0] * (name in NOT_ZERO)]
    else:
        bad = [-1, 2.5, *[0] * (name not in ZERO)]
    bad += FURTHER.get(name, [])
    lists = [[4, x] for x in bad] if 'Sequence' in hint else []
    return lists if hint.startswith('collections.abc.Sequence') else bad + lists


def required(kind: type[nn.Module]) -> dict[str, Any]:
    """Return arguments with which a loss or connector can be built."""
    if kind.__name__ in loss_classes():
        return examples_of(kind)[0].arguments(Sizes())
    return REQUIRED.get(kind.__name__, {})


def cases() -> list[Any]:
    found = [
        (kind, name, bad)
        for kind in CLASSES
        for name, parameter in inspect.signature(kind).parameters.items()
        if 'int' in (hint := str(parameter.annotation)) or 'float' in hint
        for bad in bad_values(name, hint)
        # Levels may be negative; they are checked once the wire is known.
        if name != 'levels'
    ]
    values: dict[tuple, list] = {}
    for kind, name, bad in found:
        values.setdefault((kind, name), []).append(bad)
    return [
        pytest.param(kind, name, bad, id=f'{kind.__name__}-{name}')
        for (kind, name), bad in values.items()
    ]


@pytest.mark.parametrize(('kind', 'name', 'values'), cases())
def test_bad_numbers_are_refused(
    kind: type[nn.Module], name: str, values: list[Any]
) -> None:
    arguments = required(kind)
    for bad in values:
        if isinstance(arguments.get(name), list) and not isinstance(bad, list):
            bad = [bad] * len(arguments[name])
        with pytest.raises(ValueError, match=rf'\b{name}\b') as caught:
            kind(**dict(arguments, **{name: bad}))
        assert kind.__name__ in str(caught.value), bad


@pytest.mark.parametrize('kind', CLASSES, ids=lambda kind: kind.__name__)
def test_weights_may_be_zero(kind: type[nn.Module]) -> None:
    weights = [
        name
        for name in inspect.signature(kind).parameters
        if name.endswith('_weight') or name in ('alpha', 'beta', 'gamma')
    ]
    kind(**required(kind), **dict.fromkeys(weights, 0))


@pytest.mark.parametrize('tau', ['4', None, True, torch.ones(())])
def test_a_temperature_that_is_no_number_is_refused(tau: Any) -> None:
    with pytest.raises(ValueError, match='KDLoss: tau must be .* tau=1.0 in the entry'):
        check_tau('KDLoss', tau)


def test_a_message_names_the_argument_and_shows_the_line_to_write() -> None:
    message = (
        'ConvConnector: in_channels must be a list with an integer of at least 1 per '
        'level, got [8, 0]; write for instance in_channels=[4] in the entry of this '
        'connector under `connectors`'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        connectors.ConvConnector([8, 0], 4)
    with pytest.raises(ValueError, match='`losses`'):
        check_counts('SemCKDLoss', student_channels=[])
