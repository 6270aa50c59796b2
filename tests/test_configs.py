"""Every shipped recipe: what it inherits, what its metafile says, and one step."""

import ast
import functools
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import nn

from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.distillers import Distiller
from kdtoolbox.registry import MODELS
from kdtoolbox.teachers.kinds import forget_weights, teacher_faults
from kdtoolbox.teachers.models import build_model

ROOT = Path(__file__).parents[1]
# A suite of `tools/run_benchmark.py` is no config of a model.
CONFIGS = sorted({*ROOT.glob('configs/*/*.py')} - {*ROOT.glob('configs/benchmarks/*')})
RECIPES = [
    p for p in CONFIGS if p.parent.name not in ('digits', 'pretrain', 'students')
]
FIRST = sorted({min(path.parent.glob('*.py')) for path in CONFIGS})
PRETRAIN = [path for path in CONFIGS if path.parent.name == 'pretrain']
# Tokens are trained on a teacher alone, before there is a student.
TOKENS = [path for path in RECIPES if '_tokens_' in path.stem]
ALONE = ('student', 'teacher')
DISTILLED = [
    path
    for path in CONFIGS
    if path.parent.name != 'students' and not path.stem.endswith((*ALONE, 'finetune'))
]
METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))
# Where mmsegmentation names its weights, and where its fork names the same files.
MIRROR = (
    'https://download.openmmlab.com/mmsegmentation/',
    'https://mmassets.onedl.ai/mmsegmentation/',
)
SCHEDULES = ('kdtoolbox.LossWeightHook', 'kdtoolbox.LossBalanceHook')
LICENCES = dict.fromkeys(
    ('transformers::facebook/dinov2-base', 'transformers::facebook/dinov2-small'),
    'Apache-2.0',
)
# The only change to a student's recipe: what the authors of FGD and MGD clip at.
CLIP = {'max_norm': 35, 'norm_type': 2}
# The least at which P6 has more than one cell and C5 holds a deformable kernel.
SIDE = 96

for_configs = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
for_recipes = pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
for_students = pytest.mark.parametrize(
    'path', [p for p in RECIPES if p not in TOKENS], ids=lambda path: path.stem
)
for_tokens = pytest.mark.parametrize('path', TOKENS, ids=lambda path: path.stem)
for_metafiles = pytest.mark.parametrize(
    'path', METAFILES, ids=lambda path: path.parent.name
)


@functools.cache
def load(source: Path | str) -> Config:
    cfg = load_config(source)
    if source in DISTILLED:
        # As the tools do: teachers of the digits lie beside their recipes.
        resolve_paths(cfg, need_teacher=False)
    return cfg


def base_of(path: Path) -> Path | str:
    [assigned] = re.findall(r"^_base_ = '(.+)'$", path.read_text(), re.MULTILINE)
    return assigned if '::' in assigned else path.parent / assigned


def student_of(path: Path) -> Path | str:
    """Return the plain config that a recipe starts from, the task library's or ours."""
    base = base_of(path)
    if isinstance(base, str) or base.parent.name == 'students':
        return base
    return student_of(base)


def name_of(source: Path | str) -> str:
    """Return a config's name in a metafile."""
    return (
        source if isinstance(source, str) else str(source.resolve().relative_to(ROOT))
    )


@functools.cache
def published(source: Path | str) -> dict:
    """Return the entry of a task library's own metafile for ``package::config``."""
    if isinstance(source, Path):
        # Nobody has published a student of ours.
        return dict(Results=[dict(Metrics={})])
    package, _, name = source.partition('::')
    root = Path(find_spec(package).origin).parent / '.mim'
    [metafile] = (root / 'configs' / name).parent.glob('metafile.y*ml')
    content = yaml.safe_load(metafile.read_text())
    models = content['Models'] if isinstance(content, dict) else content
    entries = [model for model in models if model['Config'] == f'configs/{name}']
    if not entries:
        # Its weights are the user's to make, by the same library's training tool.
        weights = f'work_dirs/{Path(name).stem}/epoch_12.pth'
        return dict(Results=[dict(Metrics={})], Weights=weights)
    [entry] = entries
    return entry


def headline(entry: dict, masks: bool) -> dict:
    """Return box AP, mask AP or mIoU of one model, as a README quotes it."""
    results = entry['Results']
    results = results if isinstance(results, list) else [results]
    keys = ('box AP', 'mIoU', *(['mask AP'] if masks else []))
    return {
        key: value
        for result in results
        for key, value in result['Metrics'].items()
        if key in keys
    }


def has_masks(path: Path) -> bool:
    """Return whether a recipe's student predicts masks of instances."""
    student = load(path).model.get('student', load(path).model)
    return 'mask_head' in student or 'mask_head' in student.get('roi_head', {})


def unscoped(value: object) -> object:
    """Drop the scopes that mmengine adds to what comes from another package."""
    if isinstance(value, dict):
        return {key: unscoped(v) for key, v in value.items() if key != '_scope_'}
    return [unscoped(v) for v in value] if isinstance(value, list) else value


@for_configs
def test_no_key_is_read_by_nobody(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    read = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    runner = set(inspect.signature(Runner).parameters)
    assert own - read - runner - set(load(base_of(path))) <= {'_base_'}


@pytest.mark.parametrize('path', DISTILLED, ids=lambda path: path.stem)
def test_model_section_has_only_known_keys(path: Path) -> None:
    model = load(path).model
    kind = MODELS.get(model.type)
    assert set(model) <= {'type', *inspect.signature(kind).parameters}
    assert not [*teacher_faults(model.teacher, 'model.teacher')]
    if issubclass(kind, Distiller):
        assert set(model.get('recorders', ALONE)) == set(ALONE)


@pytest.mark.parametrize('path', [*RECIPES, *PRETRAIN], ids=lambda path: path.stem)
def test_recipe_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 30


@for_students
def test_recipe_is_the_students_but_for_the_distillation(path: Path) -> None:
    recipe = unscoped(load(path).to_dict())
    base = unscoped(load(student_of(path)).to_dict())
    student = recipe['model']['student']
    own = recipe.pop('custom_hooks', [])
    schedules = [hook for hook in own if hook['type'] in SCHEDULES]
    assert own == [*base.pop('custom_hooks', []), *schedules]
    clip_grad = recipe['optim_wrapper'].get('clip_grad')
    assert clip_grad in (base['optim_wrapper'].get('clip_grad'), CLIP)
    base['optim_wrapper']['clip_grad'] = clip_grad
    recipe['optim_wrapper']['clip_grad'] = clip_grad
    assert {**recipe, 'model': student} == {
        **{key: recipe[key] for key in recipe.keys() - base.keys()},
        **base,
    }


@for_tokens
def test_tokens_see_what_the_teacher_was_trained_on(path: Path) -> None:
    recipe = load(path)
    base = load(recipe.model.teacher.config)
    assert unscoped(recipe.train_dataloader) == unscoped(base.train_dataloader)


@for_recipes
def test_teacher_checkpoint_is_the_published_one(path: Path) -> None:
    teacher = load(path).model.teacher
    if 'config' not in teacher:
        assert teacher.pretrained
        return
    weights = published(teacher.config)['Weights']
    assert teacher.checkpoint == weights.replace(*MIRROR)


def test_model_index_imports_every_metafile() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index['Import'] == [str(path.relative_to(ROOT)) for path in METAFILES]


@for_metafiles
def test_metafile_names_the_data_that_mim_searches_for(path: Path) -> None:
    for model in yaml.safe_load(path.read_text())['Models']:
        [result] = model['Results']
        assert model['Metadata']['Training Data'] == result['Dataset']


@for_metafiles
def test_metafile_lists_the_folders_recipes(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    names = [model['Name'] for model in content['Models']]
    assert sorted(names) == [recipe.stem for recipe in sorted(path.parent.glob('*.py'))]
    [collection] = content['Collections']
    assert (ROOT / collection['README']).is_file()
    assert (ROOT / collection['Code']).is_file()
    assert {model['In Collection'] for model in content['Models']} == {
        collection['Name']
    }


@for_recipes
def test_metafile_entry_tells_what_the_config_does(path: Path) -> None:
    models = yaml.safe_load((path.parent / 'metafile.yml').read_text())['Models']
    [model] = [model for model in models if model['Name'] == path.stem]
    teacher, student = load(path).model.teacher, student_of(path)
    masks = has_masks(path)
    assert model['Config'] == str(path.relative_to(ROOT))
    inherits = load(path).model.get('init_student', False)
    assert model['Metadata'].get('InitStudent', False) == inherits
    if 'config' in teacher:
        assert model['Metadata']['Teacher'] == {
            'Config': teacher.config,
            'Weights': teacher.checkpoint,
            'Metrics': headline(published(teacher.config), masks),
        }
    else:
        assert model['Metadata']['Teacher']['Model'] == teacher.model
        assert model['Metadata']['Teacher']['Licence'] == LICENCES[teacher.model]
    expected = {
        'Config': name_of(student),
        'Metrics': headline(published(student), masks),
    }
    assert model['Metadata'].get('Student') == (None if path in TOKENS else expected)
    # Nobody has trained these here, so there are no weights of ours to offer.
    assert 'Weights' not in model
    [result] = model['Results']
    assert re.fullmatch(r'paper|not run|reported by \S+', result['Source'])
    assert bool(result['Metrics']) == (result['Source'] != 'not run')


@for_recipes
def test_readme_links_the_recipe_and_quotes_its_metafile(path: Path) -> None:
    models = yaml.safe_load((path.parent / 'metafile.yml').read_text())['Models']
    [model] = [model for model in models if model['Name'] == path.stem]
    [row] = [
        line
        for line in (path.parent / 'README.md').read_text().splitlines()
        if f']({path.name})' in line
    ]
    [result] = model['Results']
    metadata = model['Metadata']
    assert f'| {result["Source"]} |' in row
    assert ('| neck + heads |' in row) == metadata.get('InitStudent', False)
    for numbers in (result, metadata['Teacher'], metadata.get('Student', result)):
        for value in numbers.get('Metrics', {}).values():
            assert f'| {value} |' in row


@pytest.mark.parametrize('path', PRETRAIN, ids=lambda path: path.stem)
def test_a_stage_of_pre_training_is_listed_with_its_models(path: Path) -> None:
    models = yaml.safe_load((path.parent / 'metafile.yml').read_text())['Models']
    [entry] = [model for model in models if model['Name'] == path.stem]
    readme = (path.parent / 'README.md').read_text()
    assert entry['Config'] == str(path.relative_to(ROOT))
    assert f']({path.name})' in readme
    assert entry['Metadata']['Student']['Config'] == name_of(base_of(path))
    teacher = load(path).model.get('teacher')
    if teacher is not None and 'config' not in teacher:
        assert entry['Metadata']['Teacher']['Model'] == teacher.model
        assert entry['Metadata']['Teacher']['Licence'] == LICENCES[teacher.model]
    elif teacher is not None:
        shown = entry['Metadata']['Teacher']
        assert name_of(Path(teacher.config)) == shown['Config']
        assert name_of(Path(teacher.checkpoint)) == shown['Weights']
    [result] = entry['Results']
    for value in result['Metrics'].values():
        assert f'**{value} ' in readme
        assert result['Source'].removeprefix('ours, commit ') in readme


def detection_batch(masks: bool) -> dict:
    from mmdet.testing import demo_mm_inputs

    sizes = [[3, SIDE, SIDE]] * 2
    return demo_mm_inputs(2, sizes, num_items=[2, 0], num_classes=10, with_mask=masks)


def segmentation_batch() -> dict:
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 10, (1, SIDE, SIDE))),
            metainfo=dict(img_shape=(SIDE, SIDE)),
        )
        for _ in range(2)
    ]
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)


def build(path: Path) -> nn.Module:
    """Build a recipe's model with random weights, for small images on a CPU."""
    config = load(path).to_dict()
    model = config['model']
    student = model
    if model['type'].startswith('kdtoolbox.'):
        student = model.get('student', model)
        forget_weights(model)
        for loss in model.get('losses', {}).values():
            if 'tokens' in loss:
                loss.update(tokens=None, allow_random=True)
    if config['default_scope'] == 'mmseg':
        if path in TOKENS:
            # There is no student, and the images are the teacher's.
            theirs = load(model['teacher']['config']).to_dict()
            model['teacher']['config'] = theirs
            student = theirs['model']
        student['data_preprocessor']['size'] = (SIDE, SIDE)
    if 'num_queries' in student:
        # DINO chooses its queries among the cells, of which these images have few.
        theirs = load(model['teacher']['config']).to_dict()
        student['num_queries'] = theirs['model']['num_queries'] = 20
        model['teacher']['config'] = theirs
    # Without `init_weights`, which would download the backbone.
    built = revert_sync_batchnorm(build_model(config)).train()
    if 'num_queries' in student:
        # Until then these are whatever lay in memory.
        for detector in (built.student, built.teacher.model):
            nn.init.normal_(detector.level_embed)
    return built


@pytest.mark.e2e
@pytest.mark.parametrize(
    'path',
    # The front door runs every config. The recipes of a method differ in their models
    # only, and where the gradients of its losses go is the same in all. Foundation
    # models need their libraries.
    [path for path in FIRST if 'dinov2' not in path.stem],
    ids=lambda path: path.stem,
)
def test_one_training_step(path: Path) -> None:
    # YOLOX's random resize counts with the runner, which there is none of here.
    MessageHub.get_current_instance().update_info('iter', 0)
    torch.manual_seed(0)
    model = build(path)
    segments = load(path).default_scope == 'mmseg'
    batch = segmentation_batch() if segments else detection_batch(has_masks(path))

    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, logged = model.parse_losses(losses)
    assert all(torch.isfinite(value) for value in logged.values()), logged

    student = getattr(model, 'student', model)
    if student is not model:
        for name in model.losses:
            terms = [v for key, v in logged.items() if key.partition('.')[0] == name]
            assert sum(terms) > 0, logged
        names = tuple(model.losses)
        distilled = [v for k, v in logged.items() if k.partition('.')[0] in names]
        # Alone, because the task losses reach the backbone anyway.
        last = [p for p in student.backbone.parameters() if p.requires_grad][-1]
        [reached] = torch.autograd.grad(sum(distilled), last, retain_graph=True)
        assert reached.abs().sum() > 0
    total.backward()
    # Of a model that trains tokens these are all there is.
    trained = getattr(student, 'backbone', student)
    gradients = [weight.grad for weight in trained.parameters()]
    assert sum(grad.abs().sum() for grad in gradients if grad is not None) > 0
    if hasattr(model, 'teacher'):
        teacher = list(model.teacher.model.parameters())
        assert all(weight.grad is None for weight in teacher)
