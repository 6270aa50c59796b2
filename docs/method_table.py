"""Write the lists of methods from the code and from the metafiles.

    python docs/method_table.py

writes the tables of the benchmarks and the list of methods in README.md, the searches
and a further table in docs/benchmark.md, and model-index.yml, which are committed. The
pages of the methods are written by `method_pages` when the docs are built.
"""

from functools import cache
from pathlib import Path
from typing import Any

import benchmark_table
import yaml

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.recipes.results import BENCHMARKS

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / 'model-index.yml'
README = ROOT / 'README.md'
BENCHMARK = ROOT / 'docs/benchmark.md'
FEW_LABELS = 'digits_det_few'
VARIANTS = ('digits_det_800', 'digits_det_fewer', 'digits_seg_few')
START = '<!-- The list down to the next comment: python docs/method_table.py -->'
END = '<!-- End of the list of methods. -->'
HEADINGS = dict(
    detection='Detection',
    segmentation='Segmentation',
    logits='Logits of pixels, RoIs or dense heads',
    features='Features of any model',
    relations='Relations between rows or positions',
)
"""The folders of the losses, in the order of the README: the families of methods."""


def index() -> str:
    """Return model-index.yml: mmengine and mim read the metafiles that it lists."""
    files = sorted(path.relative_to(ROOT) for path in ROOT.glob('configs/*/*.yml'))
    return '\n'.join(['Import:', *(f'  - {path.as_posix()}' for path in files), ''])


@cache
def metafiles() -> dict[str, dict[str, Any]]:
    """Return the metafiles by their folders."""
    return {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in sorted(ROOT.glob('configs/*/metafile.yml'))
    }


def name_of(metafile: dict) -> str:
    """Return the name of a method, in italics if it is unverified."""
    name, code = (metafile['Collections'][0][key] for key in ('Name', 'Code'))
    return f'*{name}*' if 'Unverified' in (ROOT / code).read_text() else name


def folder_of(metafile: dict) -> str:
    """Return the folder of losses to which a method belongs, by its metafile."""
    folder = Path(metafile['Collections'][0]['Code']).parent.name
    if folder in ('distillers', 'sources'):
        task = metafile['Models'][0]['Results'][0]['Task']
        return 'detection' if task == 'Object Detection' else 'segmentation'
    return 'features' if folder == 'connectors' else folder


def families() -> dict[str, list[str]]:
    """Return the methods with recipes of each folder of losses, sorted by name."""
    found: dict[str, list[str]] = {folder: [] for folder in HEADINGS}
    for name, metafile in metafiles().items():
        found[folder_of(metafile)].append(name)
    for names in found.values():
        names.sort(key=lambda name: name_of(metafiles()[name]).strip('*').lower())
    return found


def method_list() -> str:
    """Return the README's list: for each folder of losses the methods with recipes."""
    methods = {
        folder: [f'  [{name_of(metafiles()[name])}](configs/{name})' for name in names]
        for folder, names in families().items()
    }
    return '\n'.join(
        f'- **{heading}:**\n' + ',\n'.join(methods[folder])
        for folder, heading in HEADINGS.items()
    )


def readme() -> str:
    """Return README.md with the present tables and the present list of methods."""
    text = README.read_text()
    for name in (*BENCHMARKS, FEW_LABELS):
        text = benchmark_table.replaced(text, name, benchmark_table.table(name))
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f'README.md: the lines {START!r} and {END!r} are missing')
    return f'{before}{start}\n\n{method_list()}\n\n{end}{after}'


def benchmark() -> str:
    """Return docs/benchmark.md with its present tables and results of the searches."""
    text = BENCHMARK.read_text()
    for name in VARIANTS:
        table = benchmark_table.table(name, '../')
        text = benchmark_table.replaced(text, name, table)
    for name in BENCHMARKS:
        table = benchmark_table.search(name)
        text = benchmark_table.replaced(text, f'search of {name}', table)
    return text


def main() -> None:
    pages = ((README, readme()), (BENCHMARK, benchmark()), (INDEX, index()))
    for path, text in pages:
        with write_whole(path) as file:
            file.write(text.encode())


if __name__ == '__main__':
    main()
