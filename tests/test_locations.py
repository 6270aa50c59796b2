import hashlib
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from kdtoolbox.locations import locate

CONTENT = b'weights'


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.pth').touch()
    assert locate('~/a.pth') == tmp_path / 'a.pth'


def test_missing_file() -> None:
    with pytest.raises(ValueError, match=r"'nowhere\.pth': there is no such file"):
        locate('nowhere.pth')


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Replace the network; return the downloads asked for."""
    asked: list[tuple] = []

    def download(url: str, target: str, hash_prefix: str | None = None) -> None:
        asked.append((url, target, hash_prefix))
        Path(target).write_bytes(CONTENT)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return asked


def test_https_goes_through_the_cache_with_its_hash(
    tmp_path: Path, downloads: list[tuple]
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    name = f'gfl_r50_fpn_1x_coco_20200629_121244-{digest}.pth'
    url = f'https://example.com/a/{name}?x=1'
    for _ in range(2):
        assert locate(url).read_bytes() == CONTENT
    assert downloads == [(url, str(tmp_path / f'hub/checkpoints/{name}'), digest)]


def test_files_of_one_name_without_a_hash_are_kept_apart(
    tmp_path: Path, downloads: list[tuple]
) -> None:
    urls = [f'https://example.com/{folder}/epoch_12.pth' for folder in 'ab']
    paths = [locate(url) for url in [*urls, *urls]]
    assert paths[:2] == paths[2:]
    assert paths[0] != paths[1]
    assert {path.name for path in paths} == {'epoch_12.pth'}
    assert [(url, digest) for url, _, digest in downloads] == [
        (url, None) for url in urls
    ]


@pytest.mark.parametrize('scheme', ['http', 'ftp', 's3', 'file', 'pavi'])
def test_only_https_is_fetched_and_its_hash_is_checked(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / 'source.pth'
    source.write_bytes(CONTENT)
    right = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    opened: list = []

    def serve(request: Any) -> Any:
        opened.append(request.full_url)
        return urlopen(source.as_uri())

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'urlopen', serve)
    with pytest.raises(ValueError, match='only https:// is fetched'):
        locate(f'{scheme}://example.com/net-{right}.pth')
    assert not opened

    with pytest.raises(ValueError, match='could not be fetched .*invalid hash value'):
        locate('https://example.com/net-00000000.pth')
    assert files_of(tmp_path / 'hub/checkpoints') == []
    url = f'https://example.com/net-{right}.pth'
    path = locate(url)
    assert files_of(path.parent) == [f'net-{right}.pth']
    assert opened == ['https://example.com/net-00000000.pth', url]
    # What lies in the cache is checked as well.
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match='remove it to fetch it again'):
        locate(url)
    path.unlink()
    assert locate(url).read_bytes() == source.read_bytes()


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: Any) -> None:
        raise OSError('Name or service not known')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'urlopen', fail)
    with pytest.raises(ValueError, match=r'not known\); download it and give its path'):
        locate('https://example.com/a.pth')
    assert files_of(tmp_path / 'hub/checkpoints') != ['a.pth']


@pytest.mark.parametrize(
    ('name', 'url'),
    [
        ('torchvision://resnet50', 'models/resnet50-'),
        ('modelzoo://resnet18', 'models/resnet18-'),
        ('openmmlab://resnet50_v1c', 'third_party/resnet50_v1c-'),
        # An old name.
        ('open-mmlab://resnet50_caffe', 'third_party/resnet50_caffe-'),
        ('mmcls://vgg11', 'vgg/vgg11_batch256_imagenet_'),
    ],
)
def test_names_that_mmengine_knows(
    name: str, url: str, downloads: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The old names of torchvision are known without it.
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    locate(name)
    [(found, _, digest)] = downloads
    assert found.startswith('https://')
    assert url in found
    # All these files have a hash in their name.
    assert digest is not None


@pytest.mark.parametrize('scheme', ['torchvision', 'open-mmlab', 'mmcls'])
def test_unknown_names(scheme: str, downloads: list[tuple]) -> None:
    with pytest.raises(ValueError, match=rf'{scheme}://resnet_50.*close: .*resnet'):
        locate(f'{scheme}://resnet_50')
    assert not downloads
