"""The model of a config of mmrazor in terms of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrazor_parts import Parts
from mmrazor_types import Values, name_of

ALGORITHMS = ('SingleTeacherDistill', 'FpnTeacherDistill')
# The values that a Distiller has.
FLAGS = dict(
    teacher_trainable=False,
    teacher_norm_eval=True,
    student_trainable=True,
    calculate_student_loss=True,
)


def convert_model(model: Mapping[str, Any], map_size: Sequence[int] | None) -> Values:
    """Return the config of a Distiller for an algorithm of mmrazor.

    Args:
        model: mmrazor's `model`.
        map_size: Height and width of the maps that a KLDivergence compares.

    Raises:
        ValueError: If a part has no equal.
    """
    kind = name_of(model.get('type'))
    if kind not in ALGORITHMS:
        raise ValueError(f'model: {kind} has no equal; there are {ALGORITHMS}')
    for key, value in FLAGS.items():
        if model.get(key, value) != value:
            raise ValueError(
                f'model.{key}={model[key]} has no equal: a Distiller trains the '
                'student on its own losses and keeps the teacher frozen in eval mode'
            )
    checkpoint = model.get('teacher_ckpt')
    if not checkpoint:
        raise ValueError(
            'model.teacher_ckpt: a Distiller loads the teacher from here; write its '
            'path or URL, also where mmrazor found it by pretrained=True'
        )
    parts = Parts(model['distiller'], map_size)
    student = _source(model, 'architecture')
    teacher = dict(config=_source(model, 'teacher'), checkpoint=checkpoint)
    recorders = {side: parts.recorders[side] for side in ('student', 'teacher')}
    converted = dict(type='kdtoolbox.Distiller', student=student, teacher=teacher)
    converted['recorders'] = recorders
    if parts.connectors:
        converted['connectors'] = parts.connectors
    return dict(converted, losses=parts.losses)


def _source(model: Mapping[str, Any], key: str) -> Any:
    config = model[key]
    if 'cfg_path' not in config:
        return {k: v for k, v in config.items() if k != '_scope_'}
    more = sorted(config.keys() - {'cfg_path', 'pretrained', '_scope_'})
    if more:
        raise ValueError(
            f'model.{key}: {more} beside cfg_path have no equal; write '
            f'dict(_base_={config["cfg_path"]!r}, model=dict(...)) into the result'
        )
    if key == 'architecture' and config.get('pretrained'):
        raise ValueError(
            'model.architecture.pretrained=True starts from the published student; '
            'set it to False and, to keep this start, add `load_from = URL` to the '
            'result'
        )
    return config['cfg_path']
