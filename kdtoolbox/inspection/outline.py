"""Outline a model: which modules one forward calls, and the shapes that they make."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdtoolbox.inspection.batches import made_up_batch, sides_of
from kdtoolbox.inspection.quiet import first_iteration, make_finite
from kdtoolbox.recorders import tensors_in


class Value(NamedTuple):
    """A tensor that a module got or returned.

    Attributes:
        shape: The shape of the tensor.
        number: The same for the same tensor, wherever it is seen.
        trains: Whether the tensor carries a gradient, so no frozen stage made it.
    """

    shape: tuple[int, ...]
    number: int
    trains: bool


@dataclass
class Layer:
    """A module of a model in one forward.

    Attributes:
        kind: The name of its class.
        calls: How often it was called. A container such as ModuleList never is.
        inputs: The tensors of all calls, in order; nested ones are flattened.
        outputs: As ``inputs``.
    """

    kind: str
    calls: int = 0
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


@dataclass
class Outline:
    """What one forward of a model has shown.

    Attributes:
        image: Height and width of the images in pixels.
        layers: All modules by path, in the order of ``named_modules``.
        order: The paths in the order in which their calls ended.
        error: Why the forward stopped early, if it did.
    """

    image: tuple[int, int]
    layers: dict[str, Layer]
    order: list[str] = field(default_factory=list)
    error: Exception | None = None

    def makers(self, number: int, below: str = '') -> list[str]:
        """Return the modules that returned a tensor, those called first at the front.

        Args:
            number: The tensor.
            below: A path; only modules inside it are returned.
        """
        prefix = f'{below}.' if below else ''
        found = [
            path
            for path in dict.fromkeys(self.order)
            if any(value.number == number for value in self.layers[path].outputs)
        ]
        return [path for path in found if path.startswith(prefix)]

    def stride(self, shape: tuple[int, ...]) -> float | None:
        """Return the stride of a map (N, C, H, W) in pixels; None for other shapes."""
        if len(shape) != 4 or 0 in shape:
            return None
        height, width = self.image[0] / shape[2], self.image[1] / shape[3]
        return round(max(height, width), 1)


def outline(model: nn.Module, side: int | None = None) -> Outline:
    """Run a copy of a model once on random images and return what its modules made.

    The model computes its losses, as in a training. If it cannot, for example because
    random weights overflow, the outline has the modules that were called until then,
    and those of a forward without losses.

    Args:
        model: A model of mmdet or mmseg, or a module that takes images alone.
        side: Height and width of the images in pixels; None for a usual size.

    Example:
        >>> from kdtoolbox.teachers.models import build_model
        >>> model = build_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
        >>> neck = outline(model, side=128).layers['neck']
        >>> [value.shape[2:] for value in neck.outputs]
        [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    """
    with torch.random.fork_rng(), first_iteration(), torch.enable_grad():
        torch.manual_seed(0)
        model = deepcopy(model).train()
        make_finite(model)
        images, samples = made_up_batch(model, side)
        found = _run(model, images, samples, 'loss')
        if found.error is not None:
            other = _run(model, images, samples, 'tensor')
            for path, layer in found.layers.items():
                if not layer.calls:
                    found.layers[path] = other.layers[path]
            found.order += [p for p in other.order if p not in found.order]
    return found


def quick_outline(model: nn.Module) -> Outline:
    """Outline a model on small images, or on the usual ones if it needs these.

    Args:
        model: A model of mmdet or mmseg.
    """
    for side in sides_of(model):
        found = outline(model, side)
        if found.error is None:
            break
    return found


def _run(model: Any, images: Tensor, samples: list, mode: str) -> Outline:
    layers = {path: Layer(type(m).__name__) for path, m in model.named_modules()}
    found = Outline((images.shape[-2], images.shape[-1]), layers)
    with _watched(model, found):
        try:
            if hasattr(model, 'extract_feat'):
                model(images, deepcopy(samples), mode=mode)
            else:
                model(images)
        except Exception as error:
            found.error = error
    return found


@contextmanager
def _watched(model: nn.Module, found: Outline) -> Iterator[None]:
    # A number stays unique only while its tensor is alive.
    alive: dict[int, Tensor] = {}
    see = partial(_see, found, alive)
    handles = [
        module.register_forward_hook(partial(see, path), with_kwargs=True)
        for path, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _see(
    found: Outline,
    alive: dict[int, Tensor],
    path: str,
    module: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any],
    output: Any,
) -> None:
    layer = found.layers[path]
    layer.calls += 1
    found.order.append(path)
    for values, seen in ((layer.inputs, [args, kwargs]), (layer.outputs, output)):
        for tensor in tensors_in(seen):
            alive[id(tensor)] = tensor
            trains = tensor.requires_grad
            values.append(Value(tuple(tensor.shape), id(tensor), trains))
