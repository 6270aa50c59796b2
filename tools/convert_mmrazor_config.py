"""Convert a distillation config of mmrazor into a recipe of kdtoolbox.

mmrazor need not be installed. The recipe keeps the names of losses and recorders, and
the data, schedule and hooks. What has no equal is an error; see docs/mmrazor.md.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmrazor_model import convert_model
from mmrazor_types import name_of

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.configuration import load_config
from kdtoolbox.distillers.wiring import Wiring
from kdtoolbox.recipes.code import code_of
from kdtoolbox.runs.brief_errors import add_traceback, brief_errors

# What mmengine, mmdet and mmseg read from the top level of a config. Other names are
# variables of the file, such as `teacher_ckpt`.
KEYS = {*signature(Runner.__init__).parameters} - {'self', 'cfg', 'model', 'work_dir'}
KEYS |= {'find_unused_parameters', 'model_wrapper_cfg', 'auto_scale_lr'}
KEYS |= {'test_pipeline', 'tta_model', 'tta_pipeline', 'custom_imports'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='config of mmrazor')
    parser.add_argument('out', type=Path, help='recipe to write, .py')
    parser.add_argument(
        '--map-size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the logits that a KLDivergence compares in training',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    add_traceback(parser)
    args = parser.parse_args()
    if args.out.suffix != '.py':
        parser.error(f'OUT must end in .py, got {args.out}')
    if args.out.exists() and not args.overwrite:
        parser.error(f'{args.out} exists; name another file or add --overwrite')
    return args


def package_bases(path: Path) -> list[str]:
    """Return the bases of a config that belong to packages, through its own files."""
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_base_':
            value = ast.literal_eval(node.value)
            names = [value] if isinstance(value, str) else list(value)
            return [base for name in names for base in _followed(name, path)]
    return []


def _followed(name: str, path: Path) -> list[str]:
    return [name] if '::' in name else package_bases(path.parent / name)


def top_level(cfg: dict[str, Any], base: Mapping[str, Any]) -> Iterator[tuple]:
    """Yield the keys beside the model that differ from those of the bases."""
    for key in (key for key in cfg if key in KEYS):
        value = cfg[key]
        kind = value.get('type') if isinstance(value, dict) else None
        if name_of(kind) == 'SingleTeacherDistillValLoop':
            # It validates the teacher as well.
            value = value | dict(type='ValLoop')
        _check_leftovers(value, key)
        if value != base.get(key):
            yield key, replaced(value, base.get(key))


def replaced(value: Any, old: Any) -> Any:
    """Return a value that replaces that of a base, in the words of mmengine."""
    both = isinstance(value, dict) and isinstance(old, dict)
    return dict(_delete_=True, **value) if both else value


def _check_leftovers(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _check_leftovers(part, f'{where}.{key}')
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_leftovers(part, f'{where}[{index}]')
    elif isinstance(value, str) and value.partition('.')[0] == 'mmrazor':
        raise ValueError(f'{where}: {value!r} has no equal; remove this part')


def convert_file(source: Path, map_size: Sequence[int] | None) -> str:
    cfg = load_config(source).to_dict()
    if 'distiller' not in cfg.get('model', {}):
        raise ValueError(f'{source}: expected a `model` with a `distiller`')
    model = convert_model(cfg['model'], map_size)
    if cfg.get('default_scope') == 'mmrazor':
        library, found, _ = str(model['student']).partition('::')
        if not found:
            raise ValueError("default_scope: write 'mmdet' or 'mmseg', not 'mmrazor'")
        cfg['default_scope'] = library
    load_config(model['student'], 'model.architecture.cfg_path')
    load_config(model['teacher']['config'], 'model.teacher.cfg_path')
    Wiring(model['losses'], model.get('connectors'))
    bases = package_bases(source)
    inherited = f'_base_ = {code_of(bases)}\n' if bases else ''
    base = Config.fromstring(inherited, '.py').to_dict()
    own = dict(top_level(cfg, base), model=replaced(model, base.get('model')))
    lines = [f'{key} = {code_of(own[key], lead=len(key) + 3)}' for key in own]
    return '\n'.join(
        [f'# Converted from {source.name} of mmrazor.', inherited, *lines, '']
    )


def main() -> None:
    args = parse_args()
    with brief_errors(args.traceback):
        text = convert_file(args.source, args.map_size)
    with write_whole(args.out) as file:
        file.write(text.encode())
    print(f'{args.source} converted to {args.out}')


if __name__ == '__main__':
    main()
