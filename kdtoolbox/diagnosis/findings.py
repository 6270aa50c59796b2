"""List all that looks wrong in what was measured."""

from kdtoolbox.diagnosis.finding import Finding
from kdtoolbox.diagnosis.loss_findings import loss_findings
from kdtoolbox.diagnosis.measurements import Measurements
from kdtoolbox.diagnosis.teacher_findings import teacher_findings

_ORDER = ('serious', 'warning', 'note')


def find(measured: Measurements) -> list[Finding]:
    """Return all findings, the serious ones first."""
    found = [*teacher_findings(measured), *loss_findings(measured)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))
