"""The interface of a source of wires."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from torch import nn

from kdtoolbox.distillers.building import Sides, Wires
from kdtoolbox.recorders import Recorder

Recorders = Mapping[str, Mapping[str, Recorder]]
"""The recorders of each model, 'student', 'teacher' or another name, by the names of
their records."""


class Models(NamedTuple):
    """The two models of a distillation, which a source reads and does not own."""

    student: Any
    teacher: Any


class Source(nn.Module):
    """Make wires that need more than a recorder.

    A config lists sources under ``model.sources``. The distiller calls `record` and
    then `connect` when it is built; in each step it runs both models within `observe`
    and then calls `make_wires`. Every method has a default that does nothing.

    The learned parts of a source are its child modules. The distiller registers them
    under their own names, so that a checkpoint has the key ``bridges.cross...`` and no
    key of the source itself.

    Attributes:
        reserved: Names that recorders of the config may not use on either side.
        follows: Name of a source that has to stand earlier in the list.
        asks_teacher: Whether it runs parts of the teacher itself, on the images and in
            the number type of the student.
        observes_teacher: Whether it watches the teacher's own forward pass, which a
            cached teacher does not run.
        teacher: Name of the teacher that it reads, ``teacher`` in the config. The
            source itself calls its wires ``teacher.<name>``; whoever calls the source
            renames them.
        where: Place in the config, for errors.
    """

    reserved: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[str | None] = None
    asks_teacher: ClassVar[bool] = False
    observes_teacher: ClassVar[bool] = False
    teacher = 'teacher'
    where = 'model.sources'

    def __init__(self) -> None:
        super().__init__()

    def record(self, models: Models) -> Recorders:
        """Check the models and return the recorders that this source needs.

        Args:
            models: Student and teacher.

        Raises:
            ValueError: If the source does not support a model, or the two differ.
        """
        return {}

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wires of this source with the models that each depends on.

        Args:
            models: Student and teacher.
            recorders: All recorders, those of other sources included.
            read: The wires that connectors and losses read.
        """
        return {}

    @contextmanager
    def observe(self, models: Models) -> Iterator[Any]:
        """Observe student and teacher while they run in the block.

        Yields:
            What was observed; complete once both models have run.
        """
        yield None

    def make_wires(self, models: Models, wires: Wires, observed: Any) -> Wires:
        """Return the wires of this step.

        Args:
            models: Student and teacher.
            wires: The records and the wires of the sources earlier in the list.
            observed: What `observe` yielded.
        """
        return {}
