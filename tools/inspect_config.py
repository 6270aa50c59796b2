"""Show what a config builds, what its wires hold, and everything that does not fit.

No weights and no data are read: both models get random weights and random images.
"""

import argparse
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtoolbox.inspection.faults import Examination, examine
from kdtoolbox.inspection.tables import differences, module_rows, wire_rows
from kdtoolbox.runs.brief_errors import STATUS, brief_errors, listed
from kdtoolbox.runs.command_line import config_parser, read_config

WIDTH = 120
"""Columns of the output where it is no terminal."""

OUTPUT = ('output', 'channels', 'stride')

LEVELS = 5
"""Number of outputs of a module that are shown."""


def parse_args() -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.epilog = f'Exits with {STATUS} if it finds a fault.'
    parser.add_argument(
        '--depth', type=int, default=2, help='components of the longest paths; 2'
    )
    parser.add_argument(
        '--find',
        metavar='PATTERN',
        help='show the modules of any depth whose path contains PATTERN, which may be '
        "a glob: 'layer[34].*.conv2'",
    )
    return parser.parse_args()


def shape_of(shape: tuple[int, ...] | None) -> str:
    """Return a shape with N for the number of images."""
    if not shape:
        return '-' if shape is None else 'scalar'
    return ', '.join(['N', *map(str, shape[1:])]) if len(shape) > 2 else str(shape)


def column(values: Iterable[object]) -> str:
    """Return values as lines of one cell, cut after a few."""
    lines = ['-' if value is None else str(value) for value in values]
    if len(lines) > LEVELS:
        lines[LEVELS:] = ['...']
    return '\n'.join(lines)


def table_of(title: str, *columns: str) -> Table:
    return Table(*columns, title=Text(title), title_justify='left')


def show_modules(
    found: Examination, args: argparse.Namespace
) -> Iterable[Table | Text]:
    """Yield the module tree of each model."""
    for name, outline in found.outlines.items():
        kind, side = type(found.models[name]).__name__, max(outline.image)
        title = f'{name}: {kind} on images of {side} pixels'
        if outline.error is not None:
            title += f'; it stopped early: {type(outline.error).__name__}'
        table = table_of(title, 'module', 'type', 'calls', *OUTPUT)
        for row in module_rows(outline, args.depth, args.find):
            short = row.path if args.find else row.path.rpartition('.')[2]
            indent = '' if args.find else '  ' * row.path.count('.')
            shapes, strides = row.outputs, row.strides
            if len({*shapes}) == 1:
                shapes, strides = shapes[:1], strides[:1]
            maps = [shape[1] if len(shape) == 4 else None for shape in shapes]
            table.add_row(
                Text(indent + short),
                row.kind,
                str(row.calls or '-'),
                column(shape_of(shape) for shape in shapes),
                column(maps),
                column(None if s is None else f'{s:g}' for s in strides),
            )
        yield table if table.row_count else Text(f'{name}: no module {args.find!r}')


def show_wires(found: Examination) -> Iterable[Table]:
    """Yield the table of recorders, connectors and losses."""
    rows = wire_rows(found)
    if not rows:
        return
    title = 'recorders, connectors (input and output) and losses'
    table = table_of(title, 'name', 'level', 'student', 'teacher', 'verdict')
    last = None
    for row in rows:
        first, last = row.name != last, row.name
        table.add_row(
            Text(row.name if first else ''),
            '-' if row.level is None else str(row.level),
            shape_of(row.student),
            shape_of(row.teacher),
            row.verdict if first else '',
        )
    yield table


def show_differences(found: Examination) -> Iterable[Table]:
    """Yield the table of what differs between the two models."""
    rows = differences(found)
    if rows:
        table = table_of('what differs', '', 'student', 'teacher')
        for row in rows:
            table.add_row(*map(Text, row))
        yield table


def main() -> int:
    args = parse_args()
    with brief_errors(args.traceback):
        cfg = read_config(args.config, args.cfg_options, need_teacher=False)
        found = examine(cfg)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    tables = [*show_modules(found, args), *show_wires(found), *show_differences(found)]
    for table in tables:
        console.print(table)
    if found.trial.missed:
        print(f'The wires were not tried: {found.trial.missed}')
    if not found.faults:
        print('No fault found.')
        return 0
    # A table would break the lines to paste.
    print(listed([*found.faults]))
    return STATUS


if __name__ == '__main__':
    sys.exit(main())
