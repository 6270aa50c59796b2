"""Make the student's own config, which mmdet and mmseg run without kdtoolbox."""

import inspect
import math
import os
import pprint
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from kdtoolbox.checkpoints.plain_values import plain
from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.configuration import load_config
from kdtoolbox.distillers import Pretrainer
from kdtoolbox.inspection.recipe_checks import class_of

_RUN_KEYS = {
    *('load_from', 'resume', 'launcher', 'work_dir', 'export_student'),
    'model_wrapper_cfg',
}


def student_config(cfg: Config) -> dict[str, Any]:
    """Return a config that trains and tests the student of a distillation alone.

    It keeps data, schedule and hooks of the distillation. It contains no teacher, no
    losses and no other types of kdtoolbox, and no keys of one run, such as the work
    dir.

    Args:
        cfg: The config of a distillation, or a plain config. It is not changed.

    Raises:
        ValueError: If the model is a type of kdtoolbox without a student, or trains
            only parts of it.

    Example:
        >>> model = dict(type='kdtoolbox.Distiller', student=dict(type='GFL'))
        >>> student_config(Config(dict(model=model, load_from='a.pth')))
        {'model': {'type': 'GFL'}}
    """
    config = {k: v for k, v in cfg.to_dict().items() if k not in _RUN_KEYS}
    config['model'] = _model(cfg, config)
    _remove_sampler(config)
    _remove_optimizer_types(config.get('optim_wrapper') or {})
    for key in ('default_hooks', 'custom_hooks', 'custom_imports'):
        if key in config:
            config[key] = _without_kdtoolbox(config[key])
    tested = (config.get('test_dataloader') or {}).get('dataset') or {}
    if 'pipeline' in tested:
        # The functions of mmseg read it only here.
        config.setdefault('test_pipeline', tested['pipeline'])
    if config.get('default_scope', '') is None:
        # Without the key, the libraries use their own scope.
        del config['default_scope']
    return {key: _plain_datasets(value) for key, value in config.items()}


def write_student_config(cfg: Config, path: str | os.PathLike) -> None:
    """Write ``student_config`` to a file without ``_base_``."""
    lines = ['# The student of a distillation, to run without teacher and kdtoolbox.']
    for key, value in student_config(cfg).items():
        text = pprint.pformat(_literal(value, key), width=88, sort_dicts=False)
        lines.append(f'{key} = {text}')
    with write_whole(path) as file:
        file.write('\n'.join([*lines, '']).encode())


def is_pretraining(cfg: Config) -> bool:
    """Return whether a run trains parts of a student, which cannot be run alone.

    Example:
        >>> is_pretraining(Config(dict(model=dict(type='kdtoolbox.Pretrainer'))))
        True
    """
    kind = class_of(cfg.model.type)
    return kind is not None and issubclass(kind, Pretrainer)


def _model(cfg: Config, config: dict[str, Any]) -> dict[str, Any]:
    """Return the model of the student; its other keys are added to ``config``."""
    if is_pretraining(cfg):
        raise ValueError(
            'model: a Pretrainer trains parts of its student without heads, so nothing '
            'can be predicted or tested; fine-tune a model from its student_*.pth by '
            "init_cfg=dict(type='Pretrained', ...) and test that one"
        )
    if 'student' not in cfg.model:
        if _is_ours(cfg.model.type):
            raise ValueError(
                f'model: expected a `student`, but a {cfg.model.type} trains '
                'none; name the config of a distillation'
            )
        return config['model']
    student = load_config(cfg.model.student, 'model.student').to_dict()
    model = dict(student.get('model', student))
    beside = student if 'model' in student else {}
    if config.get('default_scope') is None and beside.get('default_scope'):
        config['default_scope'] = beside['default_scope']
    preprocessors = (
        owner.get('data_preprocessor') for owner in (model, beside, config)
    )
    # mmengine's Runner also finds it outside of the model; the functions of mmdet and
    # mmseg do not.
    preprocessor = next((found for found in preprocessors if found), None)
    return (
        model if preprocessor is None else model | dict(data_preprocessor=preprocessor)
    )


def _is_ours(kind: Any) -> bool:
    name = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    return name.partition('.')[0] == 'kdtoolbox'


def _remove_sampler(config: dict[str, Any]) -> None:
    loader = config.get('train_dataloader') or {}
    sampler = loader.get('sampler') or {}
    if _is_ours(sampler.get('type')):
        loader['sampler'] = sampler['sampler']


def _remove_optimizer_types(wrapper: dict[str, Any]) -> None:
    if _is_ours(wrapper.get('constructor')):
        del wrapper['constructor']
    own = wrapper.pop('student_constructor', 'DefaultOptimWrapperConstructor')
    if own != 'DefaultOptimWrapperConstructor':
        wrapper['constructor'] = own
    if _is_ours(wrapper.get('type')):
        wrapper['type'] = 'OptimWrapper'


def _without_kdtoolbox(value: Any) -> Any:
    """Return hooks or module names without those of kdtoolbox."""

    def is_ours(item: Any) -> bool:
        return _is_ours(item.get('type') if isinstance(item, Mapping) else item)

    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not is_ours(v)}
        return {
            k: _without_kdtoolbox(v) if isinstance(v, list) else v
            for k, v in kept.items()
        }
    if isinstance(value, list | tuple):
        return [item for item in value if not is_ours(item)]
    return value


def _plain_datasets(value: Any) -> Any:
    """Replace the data set class of DigitScenes by a plain one of mmseg."""
    if isinstance(value, list | tuple):
        return type(value)(_plain_datasets(item) for item in value)
    if not isinstance(value, dict):
        return value
    value = {key: _plain_datasets(item) for key, item in value.items()}
    name = str(value.get('type')).rpartition('.')[2]
    if not (_is_ours(value.get('type')) and name == 'DigitScenesDataset'):
        return value
    # Imported here, as most configs do not need mmseg.
    from kdtoolbox.datasets.digit_segmentation import DigitScenesDataset

    cities = inspect.signature(DigitScenesDataset).parameters
    suffixes = {key: cities[key].default for key in ('img_suffix', 'seg_map_suffix')}
    plain_type = dict(type='BaseSegDataset', metainfo=DigitScenesDataset.METAINFO)
    return suffixes | value | plain_type


class _NonFinite(float):
    """Infinity or NaN, which have no literal in Python."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def _literal(value: Any, place: str) -> Any:
    """Return a value whose ``repr`` is Python code for it."""
    if isinstance(value, dict):
        return {k: _literal(v, f'{place}.{k}') for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(
            _literal(item, f'{place}[{index}]') for index, item in enumerate(value)
        )
    if inspect.isclass(value) or inspect.isfunction(value):
        # The registries accept this name as a type.
        return f'{value.__module__}.{value.__qualname__}'
    if isinstance(value, float) and not math.isfinite(value):
        return _NonFinite(value)
    return plain(value, place, arrays=False)
