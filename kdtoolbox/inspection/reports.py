"""The faults of a config, each with the lines that mend it."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a config.

    Attributes:
        problem: The message of the error that a training would raise. It begins with
            the config path.
        cure: Lines to paste into the config, or a hint; '' where the message says all.
    """

    problem: str
    cure: str = ''

    def __str__(self) -> str:
        """Return the problem, and below it the cure."""
        return '\n'.join([self.problem, *self.cure.splitlines()])


class Faults:
    """A list of faults that takes each one once, and remembers what it concerns.

    Example:
        >>> faults = Faults()
        >>> faults(ValueError("model.losses.loss_a.tau: not a number"))
        >>> faults.numbers('model.losses.loss_a'), faults.numbers('model.losses.loss')
        ([1], [])
    """

    def __init__(self) -> None:
        self._found: dict[str, Fault] = {}

    def __call__(self, error: Exception, cure: str = '', where: str = '') -> None:
        """Add an error.

        Args:
            error: The error. Its message begins with its config path.
            cure: Lines that mend it.
            where: The config path of errors whose message begins otherwise.
        """
        text = message_of(error)
        if where and not text.startswith('model'):
            kind = type(error).__name__
            known = isinstance(error, TypeError | ValueError)
            text = f'{where}: {text}' if known else f'{where}: {kind}: {text}'
        self._found.setdefault(text, Fault(text, cure))

    def add(self, fault: Fault) -> None:
        """Add a fault."""
        self._found.setdefault(fault.problem, fault)

    def cure(self, fault: Fault, cure: str) -> None:
        """Add lines that mend a fault, unless it has some."""
        if not fault.cure:
            self._found[fault.problem] = Fault(fault.problem, cure)

    def of(self, place: str) -> list[Fault]:
        """Return the faults that concern a config path or a part of it."""
        return [[*self][number - 1] for number in self.numbers(place)]

    def __iter__(self) -> Iterator[Fault]:
        return iter([*self._found.values()])

    def __len__(self) -> int:
        return len(self._found)

    def numbers(self, place: str) -> list[int]:
        """Return the numbers, from 1, of the faults that concern a config path."""
        starts = tuple(place + end for end in (':', '.', ',', ' ', '['))
        return [i for i, text in enumerate(self._found, 1) if text.startswith(starts)]


def message_of(error: BaseException) -> str:
    """Return the message of an error; str() puts that of a KeyError in quotes.

    Example:
        >>> message_of(KeyError('no such type'))
        'no such type'
    """
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error) or type(error).__name__
