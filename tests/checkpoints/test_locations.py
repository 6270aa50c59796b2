import hashlib
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Thread
from typing import BinaryIO

import pytest
import torch

from kdtoolbox.checkpoints.digests import file_digest
from kdtoolbox.checkpoints.locations import locate

CONTENT = b'weights'
LARGE = bytes(range(256)) * 20_000
CODES = (301, 302, 303, 307)


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
    """Replace the download by a stub, and return the list of its calls."""
    asked: list[tuple] = []

    def download(url: str, target: Path, digest: str | None = None) -> None:
        asked.append((url, str(target), digest))
        target.write_bytes(CONTENT)

    monkeypatch.setattr('kdtoolbox.checkpoints.locations.download', download)
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


class Answers(BaseHTTPRequestHandler):
    """Answer each request according to its path, and record the path."""

    asked: list[str]
    redirects: dict[str, str]
    both = Barrier(2)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind, _, rest = self.path[1:].partition('/')
        if kind == 'to':
            code, _, name = rest.partition('/')
            self.send_response(int(code))
            self.send_header('Location', self.redirects[name])
            self.end_headers()
        elif kind == 'chunked':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            self.wfile.write(b'1000\r\n' + LARGE[:99])
        else:
            if kind == 'both':
                self.both.wait(60)
            self.send_response(200)
            self.send_header('Content-Length', str(len(LARGE)))
            self.end_headers()
            cut = kind == 'cut' and self.asked.count(self.path) == 1
            self.wfile.write(LARGE[: 3_000_000 if cut else None])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope='module')
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which('openssl') is None:
        pytest.skip('openssl makes the certificate')
    path = tmp_path_factory.mktemp('https') / 'a.pem'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1']
    command += ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost']
    command += ['-keyout', str(path), '-out', f'{path}.crt']
    subprocess.run(command, check=True, capture_output=True)
    with path.open('a') as file:
        file.write(Path(f'{path}.crt').read_text())
    return path


class Server(ThreadingHTTPServer):
    """A server that ignores clients who hang up."""

    def handle_error(self, *arguments: object) -> None:
        pass


def serve(certificate: Path | None) -> tuple[Server, type[Answers]]:
    answers = type('_Answers', (Answers,), dict(asked=[], redirects={}))
    server = Server(('localhost', 0), answers)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    return server, answers


class Site:
    """An https server, an http server beside it, and the cache of downloads."""

    def __init__(self, certificate: Path, hub: Path) -> None:
        self.cache = hub / 'checkpoints'
        self.servers, answers = zip(serve(certificate), serve(None), strict=True)
        self.asked, self.asked_plainly = (answer.asked for answer in answers)
        self.redirects = answers[0].redirects
        self.https = f'https://localhost:{self.servers[0].server_port}'
        self.http = f'http://localhost:{self.servers[1].server_port}'

    def cached(self) -> list[str]:
        return [path.name for path in self.cache.rglob('*') if path.is_file()]


@pytest.fixture
def site(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    monkeypatch.setenv('no_proxy', 'localhost')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    site = Site(certificate, tmp_path / 'hub')
    yield site
    for server in site.servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('scheme', ['http', 'ftp', 's3', 'file', 'pavi'])
def test_only_https_is_fetched_and_its_hash_is_checked(scheme: str, site: Site) -> None:
    right = hashlib.sha256(LARGE).hexdigest()[:8]
    with pytest.raises(ValueError, match='only https:// is fetched'):
        locate(f'{scheme}://{site.https[8:]}/net-{right}.pth')
    assert not site.asked

    with pytest.raises(ValueError, match='could not be fetched .*name is 12345678, '):
        locate(f'{site.https}/net-12345678.pth')
    assert site.cached() == []
    url = f'{site.https}/net-{right}.pth'
    path = locate(url)
    assert site.cached() == [f'net-{right}.pth']
    assert site.asked == ['/net-12345678.pth', f'/net-{right}.pth']
    # A file in the cache is checked as well.
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match='remove it to fetch it again'):
        locate(url)
    path.unlink()
    assert locate(url).read_bytes() == LARGE


@pytest.mark.parametrize('code', CODES)
@pytest.mark.parametrize('hops', [1, 2])
@pytest.mark.parametrize('scheme', ['http', 'ftp', 'file', 'data'])
def test_no_redirection_leaves_https(
    code: int, hops: int, scheme: str, tmp_path: Path, site: Site
) -> None:
    secret = tmp_path / 'a.pth'
    secret.write_bytes(CONTENT)
    targets = dict(http=f'{site.http}/a.pth', ftp=f'ftp{site.http[4:]}/a.pth')
    targets |= dict(file=secret.as_uri(), data='data:,a.pth')
    site.redirects |= dict(last=targets[scheme], first=f'{site.https}/to/{code}/last')
    with pytest.raises(ValueError, match=re.escape(targets[scheme])):
        locate(f'{site.https}/to/{code}/{"last" if hops == 1 else "first"}')
    assert len(site.asked) == hops
    assert not site.asked_plainly
    assert site.cached() == []


@pytest.mark.parametrize('code', CODES)
def test_redirections_within_https_are_followed(code: int, site: Site) -> None:
    site.redirects['a.pth'] = '/elsewhere/b.pth'
    assert locate(f'{site.https}/to/{code}/a.pth').read_bytes() == LARGE
    assert site.cached() == ['a.pth']


@pytest.mark.parametrize('kind', ['cut', 'chunked'])
def test_an_incomplete_download_is_not_kept(kind: str, site: Site) -> None:
    url = f'{site.https}/{kind}/a.pth'
    with pytest.raises(ValueError, match=r"to '.*/a\.pth' \(broke off.*name its path"):
        locate(url)
    assert site.cached() == []
    if kind == 'cut':
        assert locate(url).read_bytes() == LARGE


def test_two_processes_fetch_the_same_file(site: Site) -> None:
    url = f'{site.https}/both/a.pth'
    # The server answers once both processes have asked.
    with get_context('fork').Pool(2) as pool:
        digests = pool.map(digest_of, [url, url], chunksize=1)
    assert digests == [hashlib.sha256(LARGE).hexdigest()] * 2
    assert site.asked == ['/both/a.pth'] * 2
    assert site.cached() == ['a.pth']


def digest_of(url: str) -> str:
    return file_digest(locate(url))


def test_a_download_removes_the_partial_file_of_a_killed_one(site: Site) -> None:
    url = f'{site.https}/a.pth'
    path = locate(url)
    path.rename(path.with_name(f'.{path.name}.0123abcd.partial'))
    assert locate(url).read_bytes() == LARGE
    assert site.cached() == ['a.pth']


def open_full(path: Path, mode: str) -> BinaryIO:
    """Open the kernel's full disk instead of a path."""
    return open('/dev/full', 'wb')


def test_a_full_disk_is_told_when_a_file_is_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, 'open', open_full)
    with pytest.raises(ValueError, match=r'No space.* takes 5,120,000 bytes.*a\.pth'):
        locate(f'{site.https}/a.pth')


def test_the_error_without_a_network_contains_the_fix(site: Site) -> None:
    for server in site.servers:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match=r'refused.*\); download it and name its path'):
        locate(f'{site.https}/a.pth')
    assert site.cached() == []


@pytest.mark.parametrize('name', ['a-20240131.pth', 'a-00050000.pth', 'a-feed.pth'])
def test_dates_and_counters_in_names_are_no_hashes(
    name: str, downloads: list[tuple]
) -> None:
    locate(f'https://example.com/{name}')
    assert downloads[0][2] is None


@pytest.mark.parametrize(
    ('name', 'url'),
    [
        ('torchvision://resnet50', 'models/resnet50-'),
        ('modelzoo://resnet18', 'models/resnet18-'),
        ('openmmlab://resnet50_v1c', 'third_party/resnet50_v1c-'),
        # A deprecated name.
        ('open-mmlab://resnet50_caffe', 'third_party/resnet50_caffe-'),
        ('mmcls://vgg11', 'vgg/vgg11_batch256_imagenet_'),
    ],
)
def test_names_in_mmengines_tables_are_resolved(
    name: str, url: str, downloads: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    # mmengine ships the older names of torchvision.
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
