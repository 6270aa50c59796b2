"""Show the costs of the losses; part of tools/benchmark.py."""

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdtoolbox.checkpoints.writing import write_whole


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
  plain `((s - t) ** 2).mean()` of the same maps, and for MGD to the bare convolutions
  of its generators. A loss on other wires than `fpn` has none.
- Memory: the most that torch's CPU allocator holds beyond what it held before, from
  the profiler's record of allocations. The column *maps* has it in units of the
  student's maps on that wire. It contains their gradient, which every loss makes.
  Workspaces inside the libraries below torch are not seen.

{header}
{rule}
{rows}
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
    machine = (
        f'{time.strftime("%Y-%m-%d", time.gmtime())}, torch {torch.__version__}, '
        f'{_processor()}, {args.threads} threads'
    )
    return PAGE.format(
        command=shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]]),
        maps=maps,
        machine=machine,
        header=_line(HEADERS),
        rule=_line(['---', '---', *['---:'] * len(HEADERS[2:])]),
        rows='\n'.join(_line(result.cells()) for result in results),
    )


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def write(text: str, target: Path) -> None:
    """Write a file whole or not at all, and make its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(target) as file:
        file.write(text.encode())
