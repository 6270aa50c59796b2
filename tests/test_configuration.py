import copy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from kdtoolbox.configuration import check_keys, load_config, resolve_paths


def test_package_config_is_the_one_mmengine_reads() -> None:
    from mmengine.hub import get_config

    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert load_config(name).model == get_config(name).model


def test_mmseg_package_config() -> None:
    config = load_config('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    assert config.model.type == 'EncoderDecoder'
    assert config.model.backbone.depth == 18


def test_mmseg_inheritance_works_under_either_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmseg::_base_/models/fpn_r50.py'\n")
    assert load_config(path).model.neck.type == 'FPN'


@pytest.mark.parametrize('as_type', [str, Path])
def test_file_with_inheritance(tmp_path: Path, as_type: type) -> None:
    (tmp_path / 'base.py').write_text("model = dict(type='A', depth=1)\n")
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'base.py'\nmodel = dict(depth=2)\n")
    assert load_config(as_type(path)).model == dict(type='A', depth=2)


def test_a_typo_in_an_inherited_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text("model = dict(type='A', depth=1)\n")
    path = tmp_path / 'mine.py'
    for name, nearest in (('modle', 'model'), ('model.dpeth', 'depth')):
        path.write_text(f"_base_ = 'base.py'\nother = _base_.{name}\n")
        with pytest.raises(ValueError, match=f'did you mean {nearest!r}'):
            load_config(path)


def test_dict_is_copied_and_config_passes() -> None:
    source = dict(model=dict(type='A'))
    config = load_config(source)
    config.model.type = 'B'
    assert source == dict(model=dict(type='A'))
    assert load_config(config) is config


def test_unknown_config_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r'mmdet::gfl/gfl_r50_fpn_1x_coco\.py'):
        load_config('mmdet::gfl/gfl_r50_fpn_1x_coc.py')


def test_unknown_package() -> None:
    with pytest.raises(ValueError, match="'mmdett' is not installed"):
        load_config('mmdett::gfl/gfl_r50_fpn_1x_coco.py')


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file '.*nowhere\.py'"):
        load_config(str(tmp_path / 'nowhere.py'))


def test_config_of_a_dict_is_a_config() -> None:
    assert isinstance(load_config({}), Config)


@pytest.mark.parametrize('source', [None, 3, ['a.py']])
def test_other_types_of_source_are_refused(source: Any) -> None:
    with pytest.raises(TypeError, match=r'model\.teacher\.config: expected a file'):
        load_config(source, 'model.teacher.config')


def test_weights_are_no_config(tmp_path: Path) -> None:
    path = write(tmp_path / 'r50.pth')
    with pytest.raises(ValueError, match='weights belong under `checkpoint`'):
        load_config(path)


# Dicts that inherit.

GFL = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'


def write(path: Path, text: str = '') -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


CHANGES = dict(
    model=dict(
        backbone=dict(depth=18),
        neck=dict(_delete_=True, type='PAFPN', in_channels=[1, 2]),
        train_cfg=None,
    ),
    tag=['new'],
)


def test_dict_inherits_as_a_file_does(tmp_path: Path) -> None:
    lines = [f'{key} = {value!r}' for key, value in CHANGES.items()]
    path = write(tmp_path / 'mine.py', '\n'.join([f'_base_ = {GFL!r}', *lines]))
    source = dict(_base_=GFL, **CHANGES)
    before = copy.deepcopy(source)
    found = load_config(source)
    expected = load_config(path)
    # The scope of the package, which is also its `default_scope`.
    assert expected.model.pop('_scope_') == found.default_scope
    assert (found.model, found.tag) == (expected.model, expected.tag)
    assert found.keys() == expected.keys()
    assert found.model.neck == dict(type='PAFPN', in_channels=[1, 2])
    # Loading the config must not change its source.
    assert source == before


def test_dict_inherits_from_several(tmp_path: Path) -> None:
    a = write(tmp_path / 'a.py', "model = dict(type='A', depth=1)\n")
    b = write(tmp_path / 'b.py', "default_scope = 'mmdet'\n")
    found = load_config(dict(_base_=[a, b], model=dict(depth=2)))
    assert found.to_dict() == dict(model=dict(type='A', depth=2), default_scope='mmdet')
    with pytest.raises(
        ValueError, match=r"here\._base_: \['model'\] come from several"
    ):
        load_config(dict(_base_=[a, a]), 'here')


def test_dict_inherits_within_a_config_file(tmp_path: Path) -> None:
    """mmengine leaves an inner `_base_` and `_delete_` as they are."""
    text = f'student = dict(_base_={GFL!r}, model=dict(neck=dict(_delete_=True, a=1)))'
    cfg = load_config(write(tmp_path / 'mine.py', text))
    assert load_config(cfg.student).model.neck == dict(a=1)


def test_part_of_the_model_beside_the_model() -> None:
    with pytest.raises(ValueError, match=r"'backbone' belongs to .*backbone=\.\.\."):
        load_config(dict(_base_=GFL, backbone=dict(depth=18)))


def test_dict_in_place_of_a_list() -> None:
    change = dict(model=dict(bbox_head=dict(anchor_generator=dict(ratios={}))))
    with pytest.raises(TypeError, match=r'^model\.student: .*`_delete_=True`'):
        load_config(dict(_base_=GFL, **change), 'model.student')


# Missing files.


def test_missing_file_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'models/gfl_r50.py')
    with pytest.raises(ValueError, match=r'^model\.teacher\.config') as caught:
        load_config('models/gfl_r5.py', 'model.teacher.config')
    assert f'looked for {tmp_path}/models/gfl_r5.py' in str(caught.value)
    assert f'close: {tmp_path}/models/gfl_r50.py' in str(caught.value)
    with pytest.raises(ValueError, match=f'close: {tmp_path}/models$'):
        load_config('modles/gfl_r50.py')


def test_missing_config_of_a_package_names_its_place() -> None:
    with pytest.raises(ValueError, match=r'^model\.student\._base_: .*gfl_r50_fpn_1x'):
        load_config(dict(_base_=f'{GFL[:-4]}.py'), 'model.student')


@pytest.mark.parametrize(
    ('base', 'told'),
    [
        ("'gone.py'", 'there is no file .gone'),
        ("['ok.py', 'gone.py']", 'there is no file .gone'),
        ("'mmdet::gfl/gone.py'", 'mmdet has no such config'),
        ("'mmdett::gfl/gone.py'", "'mmdett' is not installed"),
    ],
)
@pytest.mark.parametrize('depth', [0, 1])
def test_missing_base_names_the_file_that_names_it(
    tmp_path: Path, base: str, told: str, depth: int
) -> None:
    write(tmp_path / 'ok.py', 'a = 1\n')
    write(tmp_path / 'faulty.py', f'_base_ = {base}\n')
    write(tmp_path / 'child.py', "_base_ = 'faulty.py'\n")
    with pytest.raises(ValueError, match=told) as caught:
        load_config(tmp_path / ('faulty.py', 'child.py')[depth])
    assert f"'{tmp_path}/faulty.py': _base_" in str(caught.value)


def test_other_errors_of_a_config_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='elsewhere'):
        load_config(write(tmp_path / 'a.py', "open('elsewhere')\n"))


# Paths beside the file that names them.

RECIPE = """
model = dict(
    type='kdtoolbox.Distiller',
    student='student.py',
    teacher=dict(config='teacher.py', checkpoint='teacher.pth'),
)
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recipe with its files, apart from the working folder."""
    folder = tmp_path / 'recipe'
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    write(folder / 'recipe.py', RECIPE)
    for name in ('student.py', 'teacher.py', 'teacher.pth'):
        write(folder / name)
    return folder


def paths_of(cfg: Config) -> list[str]:
    return [cfg.model.student, cfg.model.teacher.config, cfg.model.teacher.checkpoint]


def resolved(path: Path, **options: Any) -> Config:
    cfg = load_config(path)
    resolve_paths(cfg, **options)
    return cfg


def test_paths_beside_the_recipe_hold_in_its_dump(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = resolved(recipe / 'recipe.py')
    names = ('student.py', 'teacher.py', 'teacher.pth')
    assert paths_of(cfg) == [str(recipe / name) for name in names]
    cfg.dump(tmp_path / 'dump.py')
    monkeypatch.chdir('/')
    assert paths_of(resolved(tmp_path / 'dump.py')) == paths_of(cfg)


def test_the_working_folder_comes_first(recipe: Path) -> None:
    write(Path('teacher.py'))
    expected = [
        recipe / 'student.py',
        Path.cwd() / 'teacher.py',
        recipe / 'teacher.pth',
    ]
    assert paths_of(resolved(recipe / 'recipe.py')) == list(map(str, expected))


def test_paths_beside_the_base_that_names_them(recipe: Path, tmp_path: Path) -> None:
    text = "_base_ = '../recipe/recipe.py'\nmodel = dict(student='other.py')\n"
    write(tmp_path / 'mine/other.py')
    # Only the text of the base contains this name.
    write(tmp_path / 'mine/teacher.py')
    cfg = resolved(Path(write(tmp_path / 'mine/mine.py', text)))
    expected = [
        tmp_path / 'mine/other.py',
        recipe / 'teacher.py',
        recipe / 'teacher.pth',
    ]
    assert paths_of(cfg) == list(map(str, expected))


def test_paths_of_a_teacher_without_a_student(recipe: Path) -> None:
    text = "model = dict(teacher=dict(config='teacher.py', checkpoint='teacher.pth'))\n"
    teacher = resolved(Path(write(recipe / 'tokens.py', text))).model.teacher
    assert teacher.config == str(recipe / 'teacher.py')
    assert teacher.checkpoint == str(recipe / 'teacher.pth')


@pytest.mark.parametrize('bases', ["'teacher.py'", "['teacher.py', 'student.py']"])
def test_paths_of_inherited_dicts(recipe: Path, bases: str) -> None:
    text = RECIPE.replace("'student.py'", f'dict(_base_={bases})')
    text = text.replace("config='teacher.py'", "config=dict(_base_='teacher.py')")
    cfg = resolved(Path(write(recipe / 'recipe.py', text)))
    names = ['teacher.py'] if bases[0] == "'" else ['teacher.py', 'student.py']
    found = cfg.model.student._base_
    paths = [str(recipe / name) for name in names]
    assert found == (paths if len(paths) > 1 else paths[0])
    assert cfg.model.teacher.config._base_ == str(recipe / 'teacher.py')


def test_names_that_are_not_paths_are_not_changed(recipe: Path) -> None:
    text = RECIPE.replace('student.py', GFL).replace('teacher.py', GFL)
    text = text.replace('teacher.pth', 'https://x.org/teacher.pth')
    cfg = resolved(Path(write(recipe / 'recipe.py', text)))
    assert paths_of(cfg) == [GFL, GFL, 'https://x.org/teacher.pth']


@pytest.mark.parametrize(
    ('name', 'place'),
    [
        ('student.py', 'model.student'),
        ('teacher.py', 'model.teacher.config'),
        ('teacher.pth', 'model.teacher.checkpoint'),
    ],
)
def test_a_missing_file_lists_both_places(recipe: Path, name: str, place: str) -> None:
    (recipe / name).rename(recipe / f'{name[:3]}{name[4:]}')
    with pytest.raises(ValueError, match=f'^{place}: there is no file') as caught:
        resolved(recipe / 'recipe.py')
    message = str(caught.value)
    assert f'looked for {Path.cwd()}/{name} and {recipe}/{name}' in message
    assert f'close: {recipe}/{name[:3]}{name[4:]}' in message


def test_a_test_run_does_not_need_the_teacher(recipe: Path) -> None:
    (recipe / 'teacher.py').unlink()
    cfg = resolved(recipe / 'recipe.py', need_teacher=False)
    expected = [recipe / 'student.py', 'teacher.py', recipe / 'teacher.pth']
    assert paths_of(cfg) == list(map(str, expected))


@pytest.mark.parametrize('text', ["model = dict(type='GFL')\n", 'a = 1\n'])
def test_plain_configs_have_no_such_paths(tmp_path: Path, text: str) -> None:
    path = Path(write(tmp_path / 'plain.py', text))
    assert resolved(path).to_dict() == load_config(path).to_dict()


def test_configs_without_a_file(recipe: Path) -> None:
    write(Path('student.py'))
    cfg = Config(dict(model=dict(student='student.py')))
    resolve_paths(cfg)
    assert cfg.model.student == str(Path.cwd() / 'student.py')


def test_placeholders_of_mmengine_in_a_base(recipe: Path) -> None:
    text = (
        "_base_ = '{{ fileDirname }}/recipe.py'\nmodel = dict(student='student.py')\n"
    )
    cfg = resolved(Path(write(recipe / 'mine.py', text)))
    assert cfg.model.student == str(recipe / 'student.py')


# Keys.


def build(config: str, checkpoint: str | None = None) -> None:
    """Stand in for a class or function of a config."""


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(cofnig=1), "'cofnig' (did you mean 'config'?); it needs 'config'"),
        (dict(config=1, chekpoint=2), "'chekpoint' (did you mean 'checkpoint'?)"),
        (dict(config=1, zzz=2), "'zzz' (but config, checkpoint)"),
        (dict(config=1, a=2, b=3), "'a' (but config, checkpoint); it takes no 'b'"),
        ({}, "build needs 'config'"),
    ],
)
def test_wrong_keys_are_named(config: dict, message: str) -> None:
    with pytest.raises(TypeError, match=r'^here: build ') as caught:
        check_keys(config, build, 'here')
    assert message in str(caught.value)


def test_right_keys_pass() -> None:
    check_keys(dict(config=1), build, 'here')
    check_keys(dict(config=1, checkpoint=2, type='X', _scope_='mmdet'), build, 'here')
    check_keys(dict(anything=1), lambda **options: None, 'here')


def test_missing_keys_of_a_function_with_kwargs() -> None:
    with pytest.raises(TypeError, match="needs 'a'"):
        check_keys(dict(anything=1), lambda a, **options: None, 'here')


def test_unknown_key_of_a_function_without_parameters() -> None:
    with pytest.raises(TypeError) as caught:
        check_keys(dict(foo=1), lambda: None, 'here')
    assert str(caught.value) == "here: <lambda> takes no 'foo' (it has no arguments)"
