from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.connectors import ABFConnector
from kdtoolbox.losses import HCLLoss

GOLDEN = Path(__file__).parents[1] / 'golden' / 'reviewkd' / 'abf_hcl_three_levels.npz'
SIZES = ((8, 10), (4, 5), (2, 3))


@pytest.fixture(scope='module')
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        names = set(arrays.files) - {'meta'}
        return {name: torch.from_numpy(arrays[name]) for name in names}


def build() -> ABFConnector:
    return ABFConnector([5, 5, 5], out_channels=6, mid_channels=4)


def maps(channels: int = 5, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, channels, *size, generator=generator) for size in SIZES]


def load(connector: ABFConnector, golden: dict[str, Tensor]) -> None:
    """Load the stored weights, which start at the deepest level."""
    parts = {'conv1': 'inner', 'conv2': 'outer', 'att_conv': 'gates'}
    stored = connector.state_dict()
    for name, value in golden.items():
        if name.startswith('param_abfs.'):
            _, index, part, layer, kind = name.split('.')
            target = f'{parts[part]}.{2 - int(index)}'
            target += f'.{kind}' if part == 'att_conv' else f'.{layer}.{kind}'
            assert stored[target].shape == value.shape
            stored[target] = value
    connector.load_state_dict(stored)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    connector = build()
    load(connector, golden)
    connector.to(dtype)
    students = [golden[f'student_{i}'].to(dtype).requires_grad_() for i in range(3)]
    outputs = connector(students)
    rtol, share = (1e-9, 1e-8) if dtype == torch.float64 else (2e-5, 2e-5)
    for index, output in enumerate(outputs):
        expected = golden[f'fused_{index}']
        torch.testing.assert_close(output.double(), expected, rtol=rtol, atol=rtol)
    teachers = [golden[f'teacher_{i}'].to(dtype) for i in range(3)]
    loss = torch.stack(list(map(HCLLoss(), outputs, teachers))).sum()
    loss.backward()
    torch.testing.assert_close(loss.double(), golden['loss'], rtol=rtol, atol=0)
    for index, student in enumerate(students):
        expected = golden[f'grad_student_{index}']
        atol = share * float(expected.abs().max())
        torch.testing.assert_close(student.grad.double(), expected, rtol=0, atol=atol)


def test_naive_loops() -> None:
    connector = build().double().eval()
    levels = [level.double() for level in maps()]
    fused: list[Tensor] = []
    for index in (2, 1, 0):
        # In evaluation mode a new batch norm divides by sqrt(1 + eps).
        own = functional.conv2d(levels[index], connector.inner[index][0].weight)
        own = own / (1 + 1e-5) ** 0.5
        if fused:
            mixed = torch.empty_like(own)
            gate = connector.gates[index]
            (height, width), (rows, columns) = own.shape[2:], fused[-1].shape[2:]
            for n in range(len(own)):
                for y in range(height):
                    for x in range(width):
                        above = fused[-1][
                            n, :, y * rows // height, x * columns // width
                        ]
                        both = torch.cat([own[n, :, y, x], above])
                        keep, take = (
                            gate.weight[:, :, 0, 0] @ both + gate.bias
                        ).sigmoid()
                        mixed[n, :, y, x] = keep * own[n, :, y, x] + take * above
            own = mixed
        fused.append(own)
    for index, output in enumerate(connector(levels)):
        weight = connector.outer[index][0].weight
        expected = functional.conv2d(fused[2 - index], weight, padding=1)
        torch.testing.assert_close(output, expected / (1 + 1e-5) ** 0.5)


def test_deep_levels_change_shallow_outputs_but_not_the_reverse() -> None:
    levels = [level.requires_grad_() for level in maps()]
    shallow, _, deep = build()(levels)
    for output, reached in ((shallow, [True] * 3), (deep, [False, False, True])):
        grads = torch.autograd.grad(
            output.square().sum(), levels, retain_graph=True, allow_unused=True
        )
        assert [grad is not None and bool(grad.any()) for grad in grads] == reached


def test_all_parameters_get_a_gradient() -> None:
    connector = build()
    sum(output.square().mean() for output in connector(maps())).backward()
    assert all(parameter.grad.any() for parameter in connector.parameters())


def test_single_image_keeps_the_sizes_of_the_levels() -> None:
    outputs = build()(maps(count=1))
    assert [tuple(output.shape) for output in outputs] == [
        (1, 6, *size) for size in SIZES
    ]


def test_out_channels_may_differ_between_levels() -> None:
    outputs = ABFConnector([5, 5, 5], [6, 7, 8], mid_channels=4)(maps())
    assert [output.shape[1] for output in outputs] == [6, 7, 8]
    with pytest.raises(ValueError, match=r'3 in_channels and 2 out_channels; set li'):
        ABFConnector([5, 5, 5], [6, 7], mid_channels=4)


def test_wrong_levels_or_channels_raise() -> None:
    with pytest.raises(
        ValueError, match=r'\[5, 5, 5\].*has \[7, 7, 7\]; set in_ch.*7\]'
    ):
        build()(maps(7))
    with pytest.raises(ValueError, match=r'has \[5, 5\]; set in_channels=\[5, 5\]'):
        build()(maps()[:2])
