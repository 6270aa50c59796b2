"""Load a checkpoint file into a backbone."""

from collections import Counter
from collections.abc import Collection

from mmengine.logging import print_log
from torch import nn

from kdtoolbox.checkpoints.state_dicts import State, strip_prefix
from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly


def load_backbone(
    backbone: nn.Module, checkpoint: str, trust_pickle: bool, where: str
) -> None:
    """Load a file strictly; of a model around the backbone, its backbone alone.

    Args:
        backbone: The module to fill.
        checkpoint: Path or https URL of the file.
        trust_pickle: Load pickles that contain more than weights.
        where: Config path of the teacher, for errors and the log.

    Raises:
        ValueError: If the file does not fit.
    """
    state = load_checkpoint(checkpoint, trust_pickle)['state_dict']
    prefix = prefix_of(state, backbone.state_dict().keys())
    if prefix:
        others = sum(not key.startswith(prefix) for key in state)
        print_log(
            f'{where}: of checkpoint {checkpoint!r} took the keys below {prefix!r} '
            f'and left out {others} others',
            'current',
        )
        state = strip_prefix(state, prefix)
    load_strictly(backbone, state, repr(checkpoint), f'{where}.model')


def prefix_of(state: State, expected: Collection[str]) -> str:
    """Return what stands before the keys of a backbone in a larger model, or ''.

    Example:
        >>> prefix_of({'dinov2.a': 1, 'dinov2.b': 2, 'classifier.a': 3}, ['a', 'b'])
        'dinov2.'
    """
    wanted = set(expected)
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split('.')
        for depth in range(len(parts)):
            if '.'.join(parts[depth:]) in wanted:
                found[''.join(f'{part}.' for part in parts[:depth])] += 1
    if not found:
        return ''
    [(prefix, count), *others] = found.most_common()
    # Two copies, such as a student and its teacher, would be a choice by chance.
    alone = all(number < count for _, number in others)
    return prefix if alone and 2 * count > len(wanted) else ''
