"""Features before their activation, and the expected value of their negative part."""

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kdtoolbox.distillers.building import SIDES, Sides, Wires
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.losses.features.ofd import expected_negative
from kdtoolbox.recorders import find_modules
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class PreActivations(Source):
    """Allow records of a norm whose ReLU works in place.

    The ReLU of a ``ConvModule`` overwrites the output of its norm, such as
    ``decode_head.bottleneck.bn``. This source sets ``inplace`` to False for every
    activation beside a recorded module. No number changes; the step holds one more map.
    An addition in place, as behind the last norm of a residual block, remains: such
    records raise an error as without this source.

    For each teacher record of batch norms only, the source makes the wire
    ``margin.<name>``, which `OFDLoss` reads: the `expected_negative` (C,) of each norm.
    """

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wires of the margins; keep all recorded tensors."""
        self._norms: dict[str, list[str]] = {}
        for side, model in zip(SIDES, models, strict=True):
            for name, recorder in recorders[side].items():
                source = recorder if isinstance(recorder, str) else recorder['source']
                found = find_modules(model, source, f'model.recorders.{side}')
                for path in found:
                    _keep_inputs(model.get_submodule(path.rpartition('.')[0]))
                norms = [isinstance(x, _BatchNorm) and x.affine for x in found.values()]
                if side == 'teacher' and all(norms):
                    self._norms[name] = list(found)
        return {f'margin.{name}': {'teacher'} for name in self._norms}

    def make_wires(self, models: Models, wires: Wires, observed: Any) -> Wires:
        """Return the margins (C,) of the teacher's norms."""
        return {
            f'margin.{name}': [
                _margin_of(models.teacher.get_submodule(path)) for path in paths
            ]
            for name, paths in self._norms.items()
        }


def _keep_inputs(parent: Any) -> None:
    for child in parent.children():
        if getattr(child, 'inplace', False) is True:
            child.inplace = False


def _margin_of(norm: Any) -> Tensor:
    return expected_negative(norm.bias, norm.weight.abs())
