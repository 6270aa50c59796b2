"""Import all modules of a package and collect the names that it exports."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any


def discover(
    package: str, path: Iterable[str], registered: Iterable[type]
) -> dict[str, Any]:
    """Import all modules below a package and return what it exports, by name.

    A package exports the registered classes of its modules. From each module that
    registers a class it also exports the public functions that compare a student with
    a teacher: those whose first two arguments are ``student`` and ``teacher``. Helpers
    with other arguments stay in their modules.

    Args:
        package: The name of the package.
        path: Its ``__path__``.
        registered: The classes of a registry; read after the modules are imported.

    Raises:
        ImportError: If two modules define one name.

    Example:
        >>> from kdtoolbox import connectors
        >>> discover(connectors.__name__, connectors.__path__, [])
        {}
    """
    names = [info.name for info in pkgutil.walk_packages(path, f'{package}.')]
    modules = [importlib.import_module(name) for name in names]
    kinds = list(dict.fromkeys(registered))
    found: dict[str, Any] = {}
    for module in modules:
        for name, value in _exports(module, kinds):
            if name in found:
                raise ImportError(
                    f'{package}: {found[name].__module__} and {module.__name__} both '
                    f'define {name!r}; rename one of them, or let a helper start with '
                    'an underscore'
                )
            found[name] = value
    return dict(sorted(found.items()))


def _exports(module: ModuleType, kinds: Sequence[type]) -> Iterator[tuple[str, Any]]:
    classes = [kind for kind in kinds if kind.__module__ == module.__name__]
    yield from ((kind.__name__, kind) for kind in classes)
    for name, value in vars(module).items():
        if classes and inspect.isfunction(value) and not name.startswith('_'):
            arguments = list(inspect.signature(value).parameters)[:2]
            own = value.__module__ == module.__name__
            if own and arguments == ['student', 'teacher']:
                yield name, value
