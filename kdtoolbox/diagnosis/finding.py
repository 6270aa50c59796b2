"""One thing that looks wrong."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal['serious', 'warning', 'note']


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong, or that could not be measured.

    Attributes:
        severity: 'serious' if a training now is likely to be wasted, 'warning' if it
            may help less than it could, 'note' for what is worth knowing.
        problem: What looks wrong, in a few words.
        measured: The numbers behind it.
        mend: The line of the config, or the step, that mends it.
    """

    severity: Severity
    problem: str
    measured: str
    mend: str
