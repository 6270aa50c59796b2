"""Measure how far the losses are from the reference vectors, for the page of methods.

    python tools/parity.py [--write docs/parity.json]

Runs the golden tests and writes the largest relative errors of value and gradient in
float64 for each case. The reference values come from the authors' code, or from a known
third-party implementation if the authors published none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kdtoolbox.checkpoints.writing import write_whole

ROOT = Path(__file__).resolve().parent.parent


def measure() -> dict[str, dict[str, float]]:
    """Return for each case the errors of loss and gradient."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / 'parity.jsonl'
        command = [sys.executable, '-m', 'pytest', '-q', 'tests/losses', '-k', 'golden']
        environment = dict(os.environ, KDTOOLBOX_PARITY=str(target))
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        lines = [json.loads(line) for line in target.read_text().splitlines()]
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        case = found.setdefault(line['case'], dict(loss=0.0, gradient=0.0))
        for key, value in case.items():
            case[key] = max(value, float(f'{line[key]:.1e}'))
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', type=Path, default=ROOT / 'docs/parity.json')
    args = parser.parse_args()
    text = json.dumps(measure(), indent=1) + '\n'
    with write_whole(args.write) as file:
        file.write(text.encode())


if __name__ == '__main__':
    main()
