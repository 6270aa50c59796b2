"""What observers of a distillation see in each step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdtoolbox.distillers.building import Wires
from kdtoolbox.losses.detection.targets import DenseTargets


class Step(NamedTuple):
    """What a distiller has computed in one step, with its graph.

    Attributes:
        inputs: Images (N, C, H, W), normalised for the student.
        data_samples: The samples of the batch.
        wires: All wires: records, wires of sources, and outputs of connectors.
        task_losses: The student's own losses by logged name. A value may be a list of
            tensors, and values without 'loss' in their name train nothing.
        losses: The weighted distillation losses by logged name, such as ``loss_pkd``
            or ``loss_fgd.foreground``.
        targets: The targets of the student's dense head, if a loss reads them.
    """

    inputs: Tensor
    data_samples: Sequence
    wires: Wires
    task_losses: Mapping[str, Any]
    losses: Mapping[str, Tensor]
    targets: DenseTargets | None = None


Observer = Callable[[Step], None]
