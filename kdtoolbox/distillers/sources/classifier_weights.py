"""The weights of the student's classifier as a wire."""

from collections.abc import Collection
from typing import Any

from kdtoolbox.distillers.building import Sides, Wires
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.recorders import find_modules
from kdtoolbox.registry import MODELS

WIRE = 'student.classifier'


@MODELS.register_module()
class ClassifierWeights(Source):
    """Make the wire ``student.classifier`` from the weights of a layer.

    The wire has one level, the weights themselves: (K, C, 1, 1) of a segmentor's 1x1
    convolution, (K, C) of a linear layer. A loss that reads them trains them.

    Args:
        classifier: Path of the layer in the student.
    """

    def __init__(self, classifier: str = 'decode_head.conv_seg') -> None:
        super().__init__()
        self.classifier = classifier

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wire of the weights.

        Raises:
            ValueError: If the path matches no layer with weights, or several.
        """
        where = f'{self.where}.classifier'
        found = find_modules(models.student, self.classifier, where)
        if len(found) > 1 or not hasattr(next(iter(found.values())), 'weight'):
            raise ValueError(
                f'{where}: expected one layer with weights, {self.classifier!r} is '
                f'{ {name: type(layer).__name__ for name, layer in found.items()} }; '
                "name the layer that makes the logits, such as 'decode_head.conv_seg'"
            )
        [self._path] = found
        return {WIRE: {'student'}}

    def make_wires(self, models: Models, wires: Wires, observed: Any) -> Wires:
        """Return the weights."""
        return {WIRE: [models.student.get_submodule(self._path).weight]}
