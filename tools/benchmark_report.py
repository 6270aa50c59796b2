"""Show the costs of the losses; part of tools/benchmark.py."""

import argparse
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.checkpoints.writing import write_whole

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ('configs/benchmarks', 'configs/costs.json', 'docs')
"""What the benchmarks write, which is no code."""


@dataclass
class Result:
    """The cost of one loss; a ratio is None if there is nothing to compare with."""

    name: str
    wire: str
    milliseconds: float
    to_plain: float | None
    to_bare: float | None
    megabytes: float
    maps: float

    def cells(self) -> list[str]:
        """Return the cells of a row under `HEADERS`."""
        ratios = [
            '' if r is None else f'{r:.2f}' for r in (self.to_plain, self.to_bare)
        ]
        times = [f'{self.milliseconds:.1f}', *ratios]
        return [
            self.name,
            self.wire,
            *times,
            f'{self.megabytes:.1f}',
            f'{self.maps:.1f}',
        ]


HEADERS = ('loss', 'wire', 'ms', '× MSE', '× bare', 'peak MB', 'maps')
PAGE = """\
# What the losses cost

Time and memory of one forward and backward pass of each loss over all levels, by

```shell
{command}
```

- Inputs: {maps}.
- Machine: {machine}.
- Time: the median over the passes. The ratios are medians over passes run in turn: to a
  plain `((s - t) ** 2).mean()` of the same maps, which a loss on other wires than `fpn`
  has not, and for methods that train networks of their own to the bare convolutions of
  these, without norms, ReLUs, masks and losses.
- Memory: the most that torch's CPU allocator holds beyond what it held before, from
  the profiler's record of allocations. The column *maps* has it in units of the
  student's maps on that wire. It contains their gradient, which every loss makes.
  Workspaces inside the libraries below torch are not seen.

{table}
"""


def show(results: Iterable[Result], console: Console) -> None:
    # Narrow: eighty columns have to do, and no number may be cut.
    shown = Table(box=SIMPLE_HEAD, padding=0)
    for index, header in enumerate(HEADERS):
        shown.add_column(header, justify='right' if index > 1 else 'left', no_wrap=True)
    for result in results:
        shown.add_row(*result.cells())
    console.print(shown)


def page(results: Iterable[Result], args: argparse.Namespace) -> str:
    """Return the results as a page of Markdown."""
    maps = (
        f'{args.images} images of {args.size[0]} x {args.size[1]} pixels with '
        f'{args.boxes} boxes each, strides {", ".join(map(str, args.strides))}, '
        f'{args.channels} channels on `fpn`, float32'
    )
    return PAGE.format(
        command=command(),
        maps=maps,
        machine=machine(args.threads),
        table=markdown(HEADERS, (result.cells() for result in results), texts=2),
    )


def command() -> str:
    """Return the command line of this run."""
    return shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]])


def machine(threads: int) -> str:
    """Return the day, the commit and the machine of this run in words."""
    return (
        f'{time.strftime("%Y-%m-%d", time.gmtime())}, commit {commit()}, torch '
        f'{torch.__version__}, {processor()}, {threads} threads'
    )


def commit() -> str:
    """Return the commit of the repository, with 'dirty' if the code is another."""
    git = shutil.which('git')
    if git is None or not (ROOT / '.git').exists():
        return 'unknown'

    def ask(*words: str) -> str:
        return subprocess.check_output([git, *words], cwd=ROOT, text=True).strip()

    paths = [f':!{folder}' for folder in MEASURED]
    status = ('status', '--porcelain', '--untracked-files=no', '--', '.', *paths)
    try:
        changed = ask(*status)
        return ask('rev-parse', '--short=10', 'HEAD') + (' dirty' if changed else '')
    except subprocess.CalledProcessError:
        # As in a container whose user does not own the clone.
        return 'unknown'


def markdown(headers: Sequence[str], rows: Iterable[list[str]], texts: int) -> str:
    """Return a table of Markdown; all columns but the first `texts` are numbers."""
    rule = [*['---'] * texts, *['---:'] * (len(headers) - texts)]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [headers, rule, *rows])


def processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def write(text: str, target: Path) -> None:
    """Write a file whole or not at all, and make its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(target) as file:
        file.write(text.encode())


def note(section: str, values: Mapping[str, Any], target: Path, threads: int) -> None:
    """Write measured values into a section of a JSON file; keep its other sections."""
    known = json.loads(target.read_text()) if target.exists() else {}
    rounded = json.loads(json.dumps(values), parse_float=lambda x: round(float(x), 3))
    facts = dict(command=command(), machine=machine(threads), values=rounded)
    write(json.dumps(known | {section: facts}, indent=1) + '\n', target)
