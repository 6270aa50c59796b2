import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdtoolbox import connectors, losses
from kdtoolbox.discovery import discover

PUBLIC = 'def {name}(student, teacher): ...\n'
LOSS = 'KINDS.append(type("{name}", (), dict(__module__=__name__)))\n'
START = 'from found import KINDS\n'
Make = Callable[..., dict]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A function that writes modules into a package `found` and discovers them."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str) -> dict:
        package = tmp_path / 'found' / 'inner'
        package.mkdir(parents=True)
        (package / '__init__.py').touch()
        (package.parent / '__init__.py').write_text('KINDS = []\n')
        for name, code in modules.items():
            (package / f'{name}.py').write_text(START + code)
        import found

        return discover('found', found.__path__, found.KINDS)

    yield make
    for name in [name for name in sys.modules if name.partition('.')[0] == 'found']:
        del sys.modules[name]


def test_registered_classes_and_functions_of_student_and_teacher_are_exported(
    make: Make,
) -> None:
    helpers = 'def helper(maps): ...\ndef _part(student, teacher): ...\n'
    first = LOSS.format(name='A') + PUBLIC.format(name='a_loss') + helpers
    found = make(first=first, second=PUBLIC.format(name='no_loss_here'))
    assert list(found) == ['A', 'a_loss']


def test_a_function_that_a_module_imports_is_exported_once(make: Make) -> None:
    first = LOSS.format(name='A') + PUBLIC.format(name='shared')
    second = 'from found.inner.first import shared\n' + LOSS.format(name='B')
    found = make(first=first, second=second)
    assert list(found) == ['A', 'B', 'shared']
    assert found['shared'].__module__ == 'found.inner.first'


def test_two_modules_with_one_name_are_refused(make: Make) -> None:
    first, second = (LOSS.format(name=x) + PUBLIC.format(name='same') for x in 'AB')
    message = r"found\.inner\.first and found\.inner\.second both define 'same'; rename"
    with pytest.raises(ImportError, match=message):
        make(first=first, second=second)


def test_the_losses_and_connectors_are_exported() -> None:
    assert {'PKDLoss', 'pkd_loss', 'CWDLoss', 'kd_loss'} <= set(losses.__all__)
    assert 'ConvConnector' in connectors.__all__
    for package in (losses, connectors):
        assert all(hasattr(package, name) for name in package.__all__)
