"""The modes of device_discipline.py find what a GPU would punish, and nothing else."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from device_discipline import device_discipline
from torch import Tensor
from torch.nn import functional

FAULTS: dict[str, Callable[[Tensor], object]] = {
    'zeros without a device': lambda x: torch.zeros(2),
    'arange without a device': lambda x: torch.arange(3),
    'rand without a device': lambda x: torch.rand(2, 3),
    'tensor without a device': lambda x: torch.tensor([1.0]),
    'tensor waits for a copy': lambda x: torch.tensor([1.0], device=x.device),
    'new_tensor waits for a copy': lambda x: x.new_tensor([1.0]),
    '_local_scalar_dense waits': lambda x: x.sum().item(),
    '_local_scalar_dense waits ': lambda x: bool(x.sum() > 0),
    '_local_scalar_dense waits  ': lambda x: range(len(x))[: x.sum().long()],
    'tolist waits': lambda x: x.tolist(),
    'cpu waits': lambda x: x.cpu(),
    'to waits': lambda x: x.to('cpu'),
    'nonzero waits': lambda x: torch.where(x > 0),
    'nonzero waits ': lambda x: x.argwhere(),
    'index waits': lambda x: x[x > 0],
    'masked_select waits': lambda x: x.masked_select(x > 0),
    'index_put_ waits': lambda x: x.clone().index_put_((x > 0,), x.flatten()),
    '_unique2 waits': lambda x: x.unique(),
    'repeat_interleave waits': lambda x: x[0].repeat_interleave(x[0].long()),
    'bincount waits': lambda x: x.long().flatten().bincount(),
    'equal waits': lambda x: torch.equal(x, x),
    '_linalg_check_errors waits': lambda x: torch.linalg.inv(x[:1, :1]),
    'multinomial waits': lambda x: x.multinomial(1),
}
MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    'mm': lambda x, y: x @ y.T,
    'gather': lambda x, y: x.gather(0, y.long()),
    'index': lambda x, y: x[y[0].long()],
    '_to_copy': lambda x, y: y.to(x.device),
}
FIT: list[Callable[[Tensor], object]] = [
    lambda x: torch.zeros(2, device=x.device) + x.new_ones(()) + 1.0,
    lambda x: torch.tensor([1.0], device='cpu').to(x.device, non_blocking=True),
    lambda x: torch.full((2,), 3.0, device=x.device),
    lambda x: torch.where(x > 0, x, 0.0).masked_fill(x < 0, 1.0),
    lambda x: functional.one_hot(x.long(), 9),
    lambda x: x[:, 0].repeat_interleave(x[:, 0].long() * 0 + 2, output_size=4),
    lambda x: x[x.argmax(1)].half().float(),
]


def values() -> Tensor:
    return torch.ones(2, 3)


@pytest.mark.parametrize('fault', FAULTS)
def test_each_wait_and_each_tensor_on_the_cpu_is_found(fault: str) -> None:
    x = values()
    with device_discipline() as found:
        FAULTS[fault](x)
    [line] = found
    assert fault.strip() in line
    assert '.test_device_discipline.<lambda>:' in line


@pytest.mark.parametrize('name', MIXED)
def test_tensors_on_two_devices_are_found(name: str) -> None:
    # Some operators refuse them by themselves.
    with device_discipline() as found, suppress(RuntimeError):
        MIXED[name](values().to('meta'), values())
    assert any(f'{name} of tensors on cpu and meta' in line for line in found)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_code_that_is_fit_for_a_gpu_passes(device: str) -> None:
    x = values().to(device)
    with device_discipline() as found:
        for fit in FIT:
            if device == 'meta' or fit is not FIT[4]:
                fit(x)
    assert not found


def test_the_backward_pass_counts() -> None:
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * gradient.sum().item()

    x = values().requires_grad_()
    with device_discipline() as found:
        Waits.apply(x).sum().backward()
    assert [line.split(': ')[1] for line in found] == [
        '_local_scalar_dense waits for the device'
    ]


def test_only_the_chosen_frames_count() -> None:
    with device_discipline(lambda frame: False) as found:
        values().sum().item()
    assert not found
