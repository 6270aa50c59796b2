import ast
import sys
from pathlib import Path
from subprocess import check_output

PACKAGE = Path(__file__).parents[1] / 'kdtoolbox'
LOWER = ('losses', 'connectors', 'recorders.py', 'checkpoint.py', 'configuration.py')
LOWER += ('safe_loading.py', 'locations.py', 'whole_files.py', 'resuming.py')
LOWER += ('weights.py', 'misfits.py', 'plain_values.py')
LOWER += ('digests.py', 'downloads.py')
UPPER = ('kdtoolbox.distillers', 'kdtoolbox.hooks', 'tools')


def imports_of(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {
        a.name for node in nodes if isinstance(node, ast.Import) for a in node.names
    }
    found = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return names | {f'{node.module}.{a.name}' for node in found for a in node.names}


def test_lower_modules_know_nothing_of_the_upper_ones() -> None:
    for name in LOWER:
        path = PACKAGE / name
        for file in path.rglob('*.py') if path.is_dir() else [path]:
            upward = {i for i in imports_of(file) if i.startswith(UPPER)}
            assert not upward, f'{file.name} imports {upward}'


def test_package_imports_without_the_task_libraries() -> None:
    code = 'import sys, kdtoolbox; print({"mmcv", "mmdet", "mmseg"} & set(sys.modules))'
    assert check_output([sys.executable, '-c', code], cwd=PACKAGE.parent) == b'set()\n'
