"""Run a tool as its user does, in a process that has the imports already."""

import functools
import gc
import multiprocessing
import os
import resource
import runpy
import sys
import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.fileio import load

ROOT = Path(__file__).parents[2]
_LIMIT = 600
"""Seconds of a processor that a tool may take, however busy the machine is."""
_PREFIX = str(Path(sys.prefix, 'foundation'))
FOUNDATION = Path(
    sysconfig.get_path('purelib', vars=dict(base=_PREFIX, platbase=_PREFIX))
)
_PROCESSES = multiprocessing.get_context('forkserver')
_PROCESSES.set_forkserver_preload(
    [
        *('mmdet.apis', 'mmdet.engine', 'mmdet.evaluation', 'mmdet.visualization'),
        *('mmseg.apis', 'mmseg.engine', 'mmseg.evaluation', 'mmseg.visualization'),
        *('kdtoolbox.distillers', 'kdtoolbox.hooks', 'kdtoolbox.runs.preflight'),
        *('torch._dynamo', 'matplotlib.pyplot'),
    ]
)


def knock(tool: str, *arguments: str | Path, folder: Path, log: Path) -> int:
    """Run ``tools/<tool>`` with arguments in a folder and return its exit status.

    Args:
        tool: Name of the file.
        arguments: Its command line.
        folder: The working folder.
        log: Takes what the tool prints.
    """
    command = [str(ROOT / 'tools' / tool), *map(str, arguments)]
    child = _PROCESSES.Process(target=_enter, args=(command, folder, log, _metafiles()))
    child.start()
    # Waiting for something that never comes takes no processor.
    child.join(timeout=4 * _LIMIT)
    if child.is_alive():
        child.kill()
    child.join()
    return child.exitcode


@functools.cache
def _metafiles() -> dict[str, Any]:
    """Return all metafiles of mmdet and mmseg, which mmengine reads for each config."""
    packages = [Path(find_spec(name).origin).parent for name in ('mmdet', 'mmseg')]
    paths = [path for package in packages for path in package.glob('.mim/**/*.y*ml')]
    return {str(path): load(path) for path in paths}


def _enter(command: list[str], folder: Path, log: Path, metafiles: dict) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_LIMIT, _LIMIT))
    os.chdir(folder)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    import torch
    from mmengine.config import utils
    from mmengine.runner import loops, runner
    from yapf.yapflib import yapf_api

    if FOUNDATION.is_dir():
        # Where `tools/set_up.sh` installs the libraries of foundation models.
        sys.path.append(str(FOUNDATION))
    # Two of them run side by side.
    torch.set_num_threads(1)
    # A collection would go through all that was imported before, each time.
    gc.freeze()
    utils.load = lambda path: metafiles.get(path) or load(path)
    # Beautifying a dumped config takes longer than two iterations, and so does asking
    # compilers for their versions.
    yapf_api.FormatCode = lambda text, **options: (text, True)
    runner.collect_env = dict
    # A loop by iterations sleeps two seconds before each pass over the data.
    loops.time = SimpleNamespace(sleep=lambda seconds: None)
    sys.argv = command
    status = 0
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
