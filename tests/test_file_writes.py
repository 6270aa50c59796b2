import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WRITERS = ('write_text', 'write_bytes', 'savefig', 'imwrite', 'imsave', 'dump', 'save')

ALLOWED = {
    ('kdtoolbox/checkpoints/writing.py', 'open'): 'this is `write_whole` itself',
    ('kdtoolbox/checkpoints/student_export.py', 'save'): 'to memory, then write_whole',
    ('kdtoolbox/teachers/record_files.py', 'save'): 'to memory, then write_whole',
    ('kdtoolbox/visualization/grid.py', 'save'): 'into the file of `write_whole`',
    ('kdtoolbox/datasets/digit_scenes.py', 'imwrite'): 'the whole folder is renamed',
    ('kdtoolbox/datasets/digit_scenes.py', 'write_text'): 'the whole folder is renamed',
    ('kdtoolbox/runs/work_dir_lock.py', 'open'): 'a lock, which is never renamed',
    ('kdtoolbox/datasets/sample_faults.py', 'save'): 'to memory',
    ('tools/suite_results.py', 'open'): 'a folder, to lock it',
    ('tools/jobs.py', 'open'): 'a log, which grows line by line',
    ('tools/suite_plot.py', 'savefig'): 'to memory',
    ('tools/suite_cost.py', 'dump'): 'a config for one measurement, in a folder of it',
    ('tools/test.py', 'dump'): 'a copy of the config in a folder of this run alone',
}
"""The file and the call that may write past ``write_whole``, and why."""


def writes(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the calls that write a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        # The first argument of the built-in function is the path.
        given = node.args[1 if isinstance(node.func, ast.Name) else 0 :]
        values = [*given, *(keyword.value for keyword in node.keywords)]
        texts = [v.value for v in values if isinstance(v, ast.Constant)]
        modes = [t for t in texts if isinstance(t, str) and set(t) <= set('rwxabt+')]
        if name in WRITERS:
            yield name
        elif name in ('open', 'fdopen') and any(
            set(mode) & set('wxa+') for mode in modes
        ):
            yield 'open'


def test_every_file_is_written_by_write_whole() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in ('kdtoolbox', 'tools')
        for path in (ROOT / folder).rglob('*.py')
        for name in writes(ast.parse(path.read_text()))
    }
    assert not found - ALLOWED.keys()


@pytest.mark.parametrize(
    ('code', 'name'),
    [
        ("open('a', 'w')", 'open'),
        ("path.open('xb')", 'open'),
        ("path.open(mode='a+')", 'open'),
        ("path.write_text('a')", 'write_text'),
        ('json.dump(value, file)', 'dump'),
        ('torch.save(state, path)', 'save'),
        ("open('a')", None),
        ("path.open('rb')", None),
        ('json.dumps(value)', None),
    ],
)
def test_a_write_is_recognised(code: str, name: str | None) -> None:
    assert list(writes(ast.parse(code))) == ([name] if name else [])
