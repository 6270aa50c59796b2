import ast
import sys
from pathlib import Path
from subprocess import check_output

PACKAGE = Path(__file__).parents[1] / 'kdtoolbox'

FLOORS = (
    {'checkpoints', 'configuration', 'discovery', 'recorders', 'registry', 'version'},
    {'datasets', 'losses', 'teachers'},
    {'connectors', 'testing'},
    {'distillers'},
    {'inspection', 'visualization'},
    {'recipes'},
    {'runs'},
    {'diagnosis', 'hooks'},
)
"""The folders and top modules of the package: each imports only from lower floors."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports_of(path: Path) -> set[str]:
    """Return the folders and top modules of the package that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [
        a.name for node in nodes if isinstance(node, ast.Import) for a in node.names
    ]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names += [f'{node.module}.{a.name}' for a in node.names]
    parts = [name.split('.') for name in names]
    return {rest[0] for package, *rest in parts if package == 'kdtoolbox' and rest}


def test_imports_lead_downward() -> None:
    floor_of = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    seen = set()
    for path in PACKAGE.rglob('*.py'):
        room = room_of(path)
        if room == '__init__':
            continue
        seen.add(room)
        upward = {
            other
            for other in imports_of(path) - {room}
            if floor_of[other] >= floor_of[room]
        }
        assert not upward, f'{path.relative_to(PACKAGE)} imports {upward}'
    assert seen == floor_of.keys()


def test_package_does_not_import_the_tools() -> None:
    for path in PACKAGE.rglob('*.py'):
        assert 'from tools' not in path.read_text(), path


def test_package_imports_without_the_task_libraries() -> None:
    code = 'import sys, kdtoolbox; print({"mmcv", "mmdet", "mmseg"} & set(sys.modules))'
    assert check_output([sys.executable, '-c', code], cwd=PACKAGE.parent) == b'set()\n'
