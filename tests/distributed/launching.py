"""Run a launcher in a process of its own."""

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def variables(**changes: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    own = dict(
        OMP_NUM_THREADS='1',
        PYTHON=sys.executable,
        PYTHONPATH=str(Path(__file__).parent),
        PORT=port,
        FAIL='',
    )
    return os.environ | own | changes


def processes_with(mark: str) -> list[str]:
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if mark.encode() in (path / 'environ').read_bytes():
                found.append((path / 'cmdline').read_text())
        except OSError:
            # It ended meanwhile, or is not ours.
            continue
    return found


def launch(*command: str | Path, **changes: str) -> tuple[int, str]:
    """Run a launcher; make sure that it leaves no process behind."""
    mark = uuid.uuid4().hex
    run = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=variables(MARK=mark, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    if Path('/proc').exists():
        assert processes_with(mark) == []
    return run.returncode, run.stdout
