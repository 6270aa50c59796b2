"""Say why weights do not fit a model, and what mends it."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_RESNETS = {
    (18, False): (2, 2, 2, 2),
    (34, False): (3, 4, 6, 3),
    (50, True): (3, 4, 6, 3),
    (101, True): (3, 4, 23, 3),
    (152, True): (3, 8, 36, 3),
}
"""Blocks of the stages by depth and whether these are bottlenecks."""

_NORMS = dict(bn='BN', gn='GN', ln='LN')
"""Types of norm layers by what models call them; of a SyncBN it is ``bn`` too."""

_NORM_NAME = re.compile(r'(?<=\.)(bn|gn|ln)(?=\d*\.)')
_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


@dataclass
class Misfit:
    """What does not fit.

    Attributes:
        model: The model.
        state: The state dict.
        missing: Keys of the model that the state lacks.
        unexpected: Keys of the state that the model lacks.
        misshapen: Keys in both with the shape of the checkpoint and of the model.
    """

    model: nn.Module
    state: Mapping[str, Tensor]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict
    )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    @property
    def parts(self) -> set[str]:
        """The children of the model with any fault."""
        keys = [*self.missing, *self.unexpected, *self.misshapen]
        return {key.partition('.')[0] for key in keys}

    def describe(self) -> str:
        """Count the faults by submodule, one line per kind."""
        examples = {
            key: f'{key} {theirs} for {mine}'
            for key, (theirs, mine) in self.misshapen.items()
        }
        faults = dict(
            missing=self.missing,
            unexpected=self.unexpected,
            misshapen=list(self.misshapen),
        )
        lines = [
            f'  {len(keys)} {kind} ({_count(keys)}), such as '
            f'{examples.get(keys[0], keys[0])}'
            for kind, keys in faults.items()
            if keys
        ]
        return '\n'.join(lines)


def cure_of(misfit: Misfit, config: str | None = None) -> str:
    """Return the cause, where it can be known, and the line that mends it.

    Args:
        misfit: What does not fit.
        config: What errors call the config of the model.
    """
    place = config or 'its config'
    if '::' in place:
        # Who cannot edit the file can inherit from it in its place.
        place = f'dict(_base_={config}, model=dict(...)) as its config'
    for guess in (_two_models, _backbone, _foreign, _classes, _norms, _depth):
        cure = guess(misfit, place)
        if cure:
            return cure
    instead = f', instead of {config}' if config else ''
    return f'Name the config that the checkpoint was trained with{instead}'


def _two_models(misfit: Misfit, place: str) -> str | None:
    if not {'student', 'teacher'} <= {key.partition('.')[0] for key in misfit.state}:
        return None
    return (
        'It holds two models, `student` and `teacher`. Write the one that you mean to '
        'a file of its own, such as by torch.save({key: value for key, value in '
        "state.items() if key.startswith('teacher.')}, 'teacher.pth'), and name that"
    )


def _backbone(misfit: Misfit, place: str) -> str | None:
    """Weights of a backbone alone, or of a classifier."""
    expected = misfit.model.state_dict().keys()
    others = {key.partition('.')[0] for key in expected} - {'backbone'}
    found = {key.partition('.')[0] for key in misfit.state}
    bare = [f'backbone.{key}' in expected for key in misfit.state]
    if not others or (
        sum(bare) * 2 < len(bare) and not ('backbone' in found <= {'backbone', 'head'})
    ):
        return None
    return (
        'It holds a backbone, as a classifier has it, and no '
        f'{", ".join(sorted(others))}: a training starts from it. Name a checkpoint of '
        f'a whole {type(misfit.model).__name__}. Weights of a backbone belong into '
        "`model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)` of the "
        'config that trains it'
    )


def _foreign(misfit: Misfit, place: str) -> str | None:
    if misfit.model.state_dict().keys() & misfit.state.keys():
        return None
    return (
        "No key of it is one of the model's. Name a checkpoint that mmdet or mmseg "
        'wrote; keys of other toolboxes have to be converted first'
    )


def _classes(misfit: Misfit, place: str) -> str | None:
    """Another number of classes, and nothing else."""
    if misfit.missing or misfit.unexpected:
        return None
    counts: dict[str, set[int]] = {}
    for key, (theirs, mine) in misfit.misshapen.items():
        head = _owner_of_classes(misfit.model, key)
        if head is None or theirs[1:] != mine[1:]:
            return None
        known: Any = misfit.model.get_submodule(head).num_classes
        found = _counts(theirs[0], mine[0], known)
        counts[head] = counts.get(head, found) & found
    # What a decoder embeds for denoising takes its number from the head.
    heads = {head: found for head, found in counts.items() if head.endswith('head')}
    if not heads or any(len(found) != 1 for found in counts.values()):
        return None
    lines = [
        f'`model.{_indexed(head)}.num_classes={found.pop()}`'
        for head, found in heads.items()
    ]
    return (
        'Only the layers of the classes differ, since it was trained on another number '
        f'of them: set {", ".join(lines)} in {place}, or name a checkpoint that was '
        'trained on as many'
    )


def _indexed(path: str) -> str:
    """Return the path of a module as a config has it."""
    return re.sub(r'\.(\d+)', r'[\1]', path)


def _owner_of_classes(model: nn.Module, key: str) -> str | None:
    parts = key.split('.')
    for end in range(len(parts) - 1, 0, -1):
        path = '.'.join(parts[:end])
        if isinstance(getattr(model.get_submodule(path), 'num_classes', None), int):
            return path
    return None


def _counts(theirs: int, mine: int, classes: int) -> set[int]:
    """Return the numbers of classes that explain the size of a layer."""
    found = set()
    for background in (0, 1):
        if mine % (classes + background) == 0:
            size = mine // (classes + background)
            if theirs % size == 0 and theirs // size > background:
                found.add(theirs // size - background)
    return found


def _norms(misfit: Misfit, place: str) -> str | None:
    """Norm layers of another type, and nothing else."""
    sides = []
    for keys in (misfit.unexpected, misfit.missing):
        keys = [key for key in keys if not key.endswith(_STATISTICS)]
        names = {name for key in keys for name in _NORM_NAME.findall(key)}
        sides.append((names, {_NORM_NAME.sub('norm', key) for key in keys}))
    (theirs, there), (mine, here) = sides
    if misfit.misshapen or there != here or not (len(theirs) == len(mine) == 1):
        return None
    kind, own = theirs.pop(), mine.pop()
    more = ' with the number of groups of its training' if kind == 'gn' else ''
    return (
        f'Its norm layers are called {kind} and those of the model {own}: set '
        f"`norm_cfg=dict(type='{_NORMS[kind]}', ...)`{more} in "
        f'{", ".join(f"`model.{part}`" for part in sorted(misfit.parts))} of {place}'
    )


def _depth(misfit: Misfit, place: str) -> str | None:
    """A ResNet of another depth."""
    theirs, mine = (
        _resnet(state) for state in (misfit.state, misfit.model.state_dict())
    )
    if theirs is None or mine is None or theirs == mine:
        return None
    cause = f'Its backbone is a ResNet-{theirs} and that of the model a ResNet-{mine}: '
    if misfit.parts == {'backbone'}:
        return f'{cause}set `model.backbone.depth={theirs}` in {place}'
    return f'{cause}name the config that it was trained with'


def _resnet(state: Mapping[str, Tensor]) -> int | None:
    """Return the depth of a state's ResNet, if its blocks are those of one."""
    found = Counter(
        match.group(1)
        for key in state
        if (match := re.match(r'backbone\.layer(\d)\.\d+\.conv1\.weight$', key))
    )
    blocks = tuple(found[stage] for stage in sorted(found))
    bottleneck = 'backbone.layer1.0.conv3.weight' in state
    depths = [
        depth
        for (depth, kind), stages in _RESNETS.items()
        if blocks and kind == bottleneck and stages[: len(blocks)] == blocks
    ]
    return depths[0] if len(depths) == 1 else None


def _count(keys: list[str]) -> str:
    counts = Counter('.'.join(key.split('.')[:2]) for key in keys)
    return ', '.join(f'{part}: {number}' for part, number in counts.most_common(6))
