from pathlib import Path

import pytest

from kdtoolbox.recipes.fitted import Fitted
from kdtoolbox.recipes.writing import class_base, recipe_text, reference, text_base


def text_of(fitted: Fitted, base: str = "_base_ = 'a.py'", **further: str) -> str:
    teacher = dict(config='t.py', checkpoint='t.pth')
    return recipe_text(['A comment.'], base, teacher, fitted, further)


def run(text: str) -> dict:
    """Return the names that the text defines, with a base that has a model."""
    from types import SimpleNamespace

    base = SimpleNamespace(model=dict(type='GFL'), custom_hooks=['ema'])
    names: dict = dict(_base_=base, model=base.model)
    lines = [line for line in text.splitlines() if not line.startswith('_base_ =')]
    exec('\n'.join(lines), names)  # noqa: S102  the text is ours
    return names


@pytest.mark.parametrize('losses', [1, 3, 9])
def test_the_text_is_the_config(losses: int) -> None:
    layers = dict(fpn='neck', cls='bbox_head.cls')
    connector = dict(
        type='ConvConnector',
        input='student.fpn',
        in_channels=[256] * 5,
        out_channels=[64, 128, 256],
        norm_cfg=dict(type='BN', affine=False),
    )
    ends = dict(student='aligned', teacher='teacher.fpn', loss_weight=2e-5, names=None)
    fitted = Fitted(
        dict(student=layers, teacher=layers),
        dict(aligned=connector),
        {f'loss_{i}': dict(type='PKDLoss', **ends) for i in range(losses)},
        [dict(type='RoIResponses')],
    )
    text = text_of(fitted, custom_hooks="[*_base_.custom_hooks, dict(type='A')]")
    assert all(len(line) <= 88 for line in text.splitlines())
    assert text.count('\n') <= 30 or losses == 9
    names = run(text)
    assert names['custom_hooks'] == ['ema', dict(type='A')]
    assert names['model'] == dict(
        _delete_=True,
        type='kdtoolbox.Distiller',
        student=dict(type='GFL'),
        teacher=dict(config='t.py', checkpoint='t.pth'),
        sources=fitted.sources,
        recorders=dict(student=layers, teacher=layers),
        connectors=fitted.connectors,
        losses=fitted.losses,
    )


def test_paths_are_relative_to_the_recipe_if_they_are_near(tmp_path: Path) -> None:
    near = tmp_path / 'models/student.py'
    assert reference(str(near), tmp_path / 'recipes') == '../models/student.py'
    assert text_base(str(near), tmp_path) == "_base_ = 'models/student.py'"
    far = Path('/far/away/from/here/student.py')
    assert reference(str(far), tmp_path / 'a/b/c/d') == str(far)
    assert reference('mmdet::gfl/a.py', tmp_path) == 'mmdet::gfl/a.py'


def test_a_base_of_classes_is_imported(tmp_path: Path) -> None:
    source = str(tmp_path / 'models/student.py')
    assert class_base(source, tmp_path).endswith('from .models.student import *')
    assert class_base(source, tmp_path / 'recipes').endswith(
        'from ..models.student import *'
    )
    with pytest.raises(ValueError, match='copy it beside the recipe'):
        class_base(str(tmp_path / 'a-b.py'), tmp_path)
