"""Features before their activation, and how far below zero they lie there."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.losses.features.ofd import expected_negative
from kdtoolbox.recorders import Recorder, Records, check_recorders, find_modules
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class PreActivationDistiller(Distiller):
    """A distiller that can record a norm whose ReLU works in place.

    The output of ``decode_head.bottleneck.bn`` is gone once the ReLU of that
    ``ConvModule`` has overwritten it. Here the activations beside a recorded module
    leave their input alone: no number changes, and one more map is held. An addition
    in place, as behind the last norm of a residual block, is none of these; such
    records are refused as ever.

    For each record of the teacher that holds batch norms alone there is a wire
    ``margin.<name>``: `expected_negative` of the weights of each norm, as `OFDLoss`
    reads it.
    """

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> Mapping[str, Mapping[str, Recorder]]:
        """Return the recorders; see to it that their tensors are not overwritten."""
        self._norms: dict[str, list[str]] = {}
        for side, model in zip(SIDES, (self.student, self.teacher.model), strict=True):
            where = f'model.recorders.{side}'
            check_recorders(model, recorders[side], where)
            for name, recorder in recorders[side].items():
                source = recorder if isinstance(recorder, str) else recorder['source']
                found = find_modules(model, source, where)
                for path in found:
                    _keep_inputs(model.get_submodule(path.rpartition('.')[0]))
                norms = [isinstance(x, _BatchNorm) and x.affine for x in found.values()]
                if side == 'teacher' and all(norms):
                    self._norms[name] = list(found)
        return recorders

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        margins = {f'margin.{name}': {'teacher'} for name in self._norms}
        return super().wire_sides() | margins

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and the margins (C,) of the teacher's norms."""
        margins = {
            f'margin.{name}': [
                _margin_of(self.teacher.model.get_submodule(path)) for path in paths
            ]
            for name, paths in self._norms.items()
        }
        return super().collect_wires(student, teacher) | margins


def _keep_inputs(parent: Any) -> None:
    for child in parent.children():
        if getattr(child, 'inplace', False) is True:
            child.inplace = False


def _margin_of(norm: Any) -> Tensor:
    return expected_negative(norm.bias, norm.weight.abs())
