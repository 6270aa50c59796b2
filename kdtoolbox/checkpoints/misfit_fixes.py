"""Guess why a state dict does not fit a model, and suggest how to fix that."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdtoolbox.checkpoints.misfits import Misfit

_RESNETS = {
    (18, False): (2, 2, 2, 2),
    (34, False): (3, 4, 6, 3),
    (50, True): (3, 4, 6, 3),
    (101, True): (3, 4, 23, 3),
    (152, True): (3, 8, 36, 3),
}
"""Blocks per stage, by the depth and whether the blocks are bottlenecks."""

_NORMS = dict(bn='BN', gn='GN', ln='LN')
"""Types of norm layers by their names in a model. A SyncBN has the name ``bn``, too."""

_NORM_NAME = re.compile(r'(?<=\.)(bn|gn|ln)(?=\d*\.)')
_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def suggest_fix(misfit: Misfit, config: str | None = None) -> str:
    """Return the cause of a misfit, if it is recognized, and how to fix it.

    Args:
        misfit: The differences between the state dict and the model.
        config: The name of the model's config in error messages.
    """
    place = config or 'its config'
    if '::' in place:
        # A config of an installed package cannot be edited, only inherited from.
        place = f'dict(_base_={config}, model=dict(...)) as its config'
    for guess in (_two_models, _backbone, _foreign, _classes, _norms, _depth):
        fix = guess(misfit, place)
        if fix:
            return fix
    instead = f', instead of {config}' if config else ''
    return f'Name the config that the checkpoint was trained with{instead}'


def _two_models(misfit: Misfit, place: str) -> str | None:
    """Recognize a checkpoint with a student and a teacher."""
    if not {'student', 'teacher'} <= {key.partition('.')[0] for key in misfit.state}:
        return None
    return (
        'It holds two models, `student` and `teacher`. Write one of them to a file of '
        'its own and name that file, for example by torch.save({key: value for key, '
        "value in state.items() if key.startswith('teacher.')}, 'teacher.pth')"
    )


def _backbone(misfit: Misfit, place: str) -> str | None:
    """Recognize the weights of a backbone alone, or of a classifier."""
    expected = misfit.model.state_dict().keys()
    others = {key.partition('.')[0] for key in expected} - {'backbone'}
    parts = {key.partition('.')[0] for key in misfit.state}
    bare = [f'backbone.{key}' in expected for key in misfit.state]
    if not others or (
        sum(bare) * 2 < len(bare) and not ('backbone' in parts <= {'backbone', 'head'})
    ):
        return None
    return (
        'It holds a backbone, like a pretrained classifier, and no '
        f'{", ".join(sorted(others))}. Name a checkpoint of a whole '
        f'{type(misfit.model).__name__}. To start a training from the backbone, set '
        "`model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)` in the "
        'config of that training'
    )


def _foreign(misfit: Misfit, place: str) -> str | None:
    """Recognize a checkpoint of another toolbox."""
    if misfit.model.state_dict().keys() & misfit.state.keys():
        return None
    return (
        "No key of it is one of the model's. Name a checkpoint that mmdet or mmseg "
        'wrote; keys of other toolboxes have to be converted first'
    )


def _classes(misfit: Misfit, place: str) -> str | None:
    """Recognize another number of classes as the only difference."""
    if misfit.missing or misfit.unexpected:
        return None
    counts: dict[str, set[int]] = {}
    for key, (in_state, in_model) in misfit.misshapen.items():
        head = _owner_of_classes(misfit.model, key)
        if head is None or in_state[1:] != in_model[1:]:
            return None
        model_classes: Any = misfit.model.get_submodule(head).num_classes
        possible = _class_counts(in_state[0], in_model[0], model_classes)
        counts[head] = counts.get(head, possible) & possible
    # The label embedding of a denoising decoder gets its number from the head.
    heads = {head: found for head, found in counts.items() if head.endswith('head')}
    if not heads or any(len(found) != 1 for found in counts.values()):
        return None
    lines = [
        f'`model.{_config_path(head)}.num_classes={found.pop()}`'
        for head, found in heads.items()
    ]
    return (
        'Only the layers of the classes differ, since it was trained on another number '
        f'of classes: set {", ".join(lines)} in {place}, or name a checkpoint that was '
        'trained on the same number'
    )


def _config_path(path: str) -> str:
    """Return the config path of a module.

    Example:
        >>> _config_path('decode_head.1.conv_seg')
        'decode_head[1].conv_seg'
    """
    return re.sub(r'\.(\d+)', r'[\1]', path)


def _owner_of_classes(model: nn.Module, key: str) -> str | None:
    """Return the path of the innermost module of a key with `num_classes`."""
    parts = key.split('.')
    for end in range(len(parts) - 1, 0, -1):
        path = '.'.join(parts[:end])
        if isinstance(getattr(model.get_submodule(path), 'num_classes', None), int):
            return path
    return None


def _class_counts(in_state: int, in_model: int, classes: int) -> set[int]:
    """Return the possible numbers of classes of a checkpoint.

    Args:
        in_state: Size of a layer in the checkpoint.
        in_model: Size of the same layer in the model.
        classes: Number of classes of the model, without a background class.
    """
    possible = set()
    for background in (0, 1):
        if in_model % (classes + background) == 0:
            size = in_model // (classes + background)
            if in_state % size == 0 and in_state // size > background:
                possible.add(in_state // size - background)
    return possible


def _norms(misfit: Misfit, place: str) -> str | None:
    """Recognize norm layers of another type as the only difference."""
    sides = []
    for keys in (misfit.unexpected, misfit.missing):
        keys = [key for key in keys if not key.endswith(_STATISTICS)]
        names = {name for key in keys for name in _NORM_NAME.findall(key)}
        sides.append((names, {_NORM_NAME.sub('norm', key) for key in keys}))
    (state_names, state_keys), (model_names, model_keys) = sides
    if misfit.misshapen or state_keys != model_keys:
        return None
    if not (len(state_names) == len(model_names) == 1):
        return None
    name, model_name = state_names.pop(), model_names.pop()
    more = ' with the number of groups of its training' if name == 'gn' else ''
    return (
        f'Its norm layers are called {name} and those of the model {model_name}: set '
        f"`norm_cfg=dict(type='{_NORMS[name]}', ...)`{more} in "
        f'{", ".join(f"`model.{part}`" for part in sorted(misfit.parts))} of {place}'
    )


def _depth(misfit: Misfit, place: str) -> str | None:
    """Recognize a ResNet of another depth."""
    depth = _resnet_depth(misfit.state)
    model_depth = _resnet_depth(misfit.model.state_dict())
    if depth is None or model_depth is None or depth == model_depth:
        return None
    cause = (
        f'Its backbone is a ResNet-{depth} and that of the model a '
        f'ResNet-{model_depth}: '
    )
    if misfit.parts == {'backbone'}:
        return f'{cause}set `model.backbone.depth={depth}` in {place}'
    return f'{cause}name the config that it was trained with'


def _resnet_depth(state: Mapping[str, Tensor]) -> int | None:
    """Return the depth of the ResNet in a state dict, or None."""
    counts = Counter(
        match.group(1)
        for key in state
        if (match := re.match(r'backbone\.layer(\d)\.\d+\.conv1\.weight$', key))
    )
    blocks = tuple(counts[stage] for stage in sorted(counts))
    bottleneck = 'backbone.layer1.0.conv3.weight' in state
    depths = [
        depth
        for (depth, kind), stages in _RESNETS.items()
        if blocks and kind == bottleneck and stages[: len(blocks)] == blocks
    ]
    return depths[0] if len(depths) == 1 else None
