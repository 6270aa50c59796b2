"""Golden cases: losses and gradients computed with the authors' code in float64."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / 'golden'
TOLERANCES = {
    # dtype: (relative, absolute, share of the largest gradient)
    torch.float64: (1e-9, 1e-12, 1e-8),
    torch.float32: (2e-5, 1e-7, 2e-5),
}


@dataclass
class Golden:
    """One case. Levels `student_0`, `student_1`, ... become the list `student`."""

    name: str
    inputs: dict[str, Any]
    params: dict[str, Tensor]
    hyper: dict[str, Any]
    loss: Tensor
    grads: dict[str, Any]
    outputs: dict[str, Any]
    meta: dict[str, Any]


def load_golden(method: str, case: str, dtype: torch.dtype = torch.float64) -> Golden:
    """Load tests/golden/<method>/<case>.npz and cast floats to `dtype`."""
    parts: dict[str, dict] = {'inputs': {}, 'params': {}, 'grads': {}, 'outputs': {}}
    with np.load(FOLDER / method / f'{case}.npz') as arrays:
        meta = json.loads(str(arrays['meta']))
        for name in sorted(set(arrays.files) - {'meta'}):
            # Inputs and parameters are stored as float32, results as float64.
            is_result = arrays[name].dtype == np.float64
            part = 'outputs' if is_result else 'inputs'
            for prefix in ('param_', 'grad_'):
                if name.startswith(prefix):
                    part = f'{prefix[:-1]}s'
                    break
            key = name.removeprefix('param_').removeprefix('grad_')
            value = torch.from_numpy(arrays[name])
            parts[part][key] = value.to(dtype) if value.is_floating_point() else value
    loss = parts['outputs'].pop('loss')
    parts = {k: v if k == 'params' else _levels(v) for k, v in parts.items()}
    name = f'{method}/{case}'
    return Golden(name, **parts, hyper=meta['hyper'], loss=loss, meta=meta)


def _levels(tensors: dict[str, Tensor]) -> dict[str, Any]:
    grouped: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r'(.+)_(\d+)', name)
        if match and f'{match[1]}_0' in tensors:
            grouped.setdefault(match[1], {})[int(match[2])] = tensor
        else:
            grouped[name] = tensor
    return {
        k: [v[i] for i in sorted(v)] if isinstance(v, dict) else v
        for k, v in grouped.items()
    }


def assert_golden(loss: Tensor, students: list[Tensor], golden: Golden) -> None:
    """Assert that a loss and the gradients of its students equal the golden ones."""
    rtol, atol, share = TOLERANCES[loss.dtype]
    torch.testing.assert_close(loss.detach(), golden.loss, rtol=rtol, atol=atol)
    loss.backward()
    grads = golden.grads['student']
    grads = grads if isinstance(grads, list) else [grads]
    assert len(students) == len(grads)
    for student, grad in zip(students, grads, strict=True):
        largest = max(share * float(grad.abs().max()), atol)
        torch.testing.assert_close(student.grad, grad, rtol=0, atol=largest)
    if loss.dtype == torch.float64:
        report_parity(loss, students, grads, golden)


def report_parity(
    loss: Tensor, students: list[Tensor], grads: list[Tensor], golden: Golden
) -> None:
    """Append the errors to the file set by tools/parity.py, for the docs."""
    target = os.environ.get('KDTOOLBOX_PARITY')
    if not target:
        return
    pairs = list(zip(students, grads, strict=True))
    largest = max(float(grad.abs().max()) for grad in grads)
    error = max(float((s.grad - grad).abs().max()) for s, grad in pairs)
    line = dict(
        case=golden.name,
        loss=float(
            abs(loss.detach() - golden.loss) / abs(golden.loss).clamp(min=1e-12)
        ),
        gradient=error / max(largest, 1e-12),
    )
    with Path(target).open('a') as file:
        file.write(json.dumps(line) + '\n')


def waves(shape: tuple[int, ...], a: float, b: float, phase: float = 0.0) -> Tensor:
    """Return a float32 input in closed form: sin(a k + phase) + cos(b k) / 2."""
    k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return ((a * k + phase).sin() + 0.5 * (b * k).cos()).reshape(shape).float()
