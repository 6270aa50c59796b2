"""A distiller whose losses may read the weights of the student's classifier."""

from collections.abc import Mapping

from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.recorders import Recorder, Records, find_modules
from kdtoolbox.registry import MODELS

WIRE = 'classifier'


@MODELS.register_module()
class ClassifierDistiller(Distiller):
    """A distiller with the wire ``student.classifier``, the weights of a layer.

    The wire has one level, the weights themselves: of the 1x1 convolution of a
    segmentor (K, C, 1, 1), of a linear layer (K, C). A loss that reads them trains
    them.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        recorders: As `Distiller` takes them.
        losses: As `Distiller` takes them.
        connectors: As `Distiller` takes them.
        init_student: As `Distiller` takes it.
        data_preprocessor: As `Distiller` takes it.
        classifier: Path of the layer in the student.

    Raises:
        ValueError: If the path names no layer with weights, or several, or a record of
            the student has the name of the wire.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        losses: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
        data_preprocessor: dict | None = None,
        classifier: str = 'decode_head.conv_seg',
    ) -> None:
        super().__init__(
            student,
            teacher,
            losses,
            recorders,
            connectors,
            init_student,
            data_preprocessor,
        )
        where = 'model.classifier'
        found = find_modules(self.student, classifier, where)
        if len(found) > 1 or not hasattr(next(iter(found.values())), 'weight'):
            raise ValueError(
                f'{where}: expected one layer with weights, {classifier!r} is '
                f'{ {name: type(layer).__name__ for name, layer in found.items()} }; '
                "name the layer that makes the logits, such as 'decode_head.conv_seg'"
            )
        [self._classifier] = found

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> Mapping[str, Mapping[str, Recorder]]:
        """Return the recorders as they are, if none takes the name of the wire."""
        if WIRE in recorders['student']:
            raise ValueError(
                f'model.recorders.student: ClassifierDistiller makes {WIRE!r} itself; '
                'choose another name'
            )
        return recorders

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        return super().wire_sides() | {f'student.{WIRE}': {'student'}}

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and the weights."""
        wires = super().collect_wires(student, teacher)
        layer = self.student.get_submodule(self._classifier)
        return wires | {f'student.{WIRE}': [layer.weight]}
