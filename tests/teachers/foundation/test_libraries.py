from pathlib import Path

import pytest

from kdtoolbox.teachers.foundation.libraries import from_cache, import_library


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        (
            'import torchvision_of_nobody',
            'needs torchvision_of_nobody; pip install kdtoolbox',
        ),
        (
            "raise ModuleNotFoundError('no', name='torchvision.ops')",
            'needs torchvision.ops; install torchvision from where your torch came',
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r'not import \(operator torchvision::nms .*from where your torch came',
        ),
    ],
)
def test_a_library_that_does_not_import_says_what_it_needs(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'models_of_nobody.py').write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f'place: models_of_nobody .*{message}'):
        import_library('models_of_nobody', 'place')


def test_files_in_the_cache_need_no_network() -> None:
    calls: list[bool] = []

    def load(local_files_only: bool) -> bool:
        calls.append(local_files_only)
        return local_files_only

    assert from_cache(load, download=True)
    assert calls == [True]


def test_missing_files_are_fetched_only_if_allowed() -> None:
    def load(local_files_only: bool) -> str:
        if local_files_only:
            raise FileNotFoundError('config.json')
        return 'fetched'

    assert from_cache(load, download=True) == 'fetched'
    with pytest.raises(FileNotFoundError, match=r'config.json'):
        from_cache(load, download=False)
