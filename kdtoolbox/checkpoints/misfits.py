"""Describe the keys of a state dict that do not fit a model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Misfit:
    """The differences between a state dict and a model.

    Attributes:
        model: The model.
        state: The state dict.
        missing: Keys of the model that are not in the state dict.
        unexpected: Keys of the state dict that are not in the model.
        misshapen: Keys in both, with the shape in the state dict and in the model.
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
        """The children of the model that have misfits."""
        keys = [*self.missing, *self.unexpected, *self.misshapen]
        return {key.partition('.')[0] for key in keys}

    def describe(self) -> str:
        """Return the number of differences per submodule, one line per kind."""
        examples = {
            key: f'{key} {in_state} for {in_model}'
            for key, (in_state, in_model) in self.misshapen.items()
        }
        kinds = dict(
            missing=self.missing,
            unexpected=self.unexpected,
            misshapen=list(self.misshapen),
        )
        lines = [
            f'  {len(keys)} {kind} ({_count_by_submodule(keys)}), such as '
            f'{examples.get(keys[0], keys[0])}'
            for kind, keys in kinds.items()
            if keys
        ]
        return '\n'.join(lines)


def _count_by_submodule(keys: list[str]) -> str:
    counts = Counter('.'.join(key.split('.')[:2]) for key in keys)
    return ', '.join(f'{part}: {number}' for part, number in counts.most_common(6))
