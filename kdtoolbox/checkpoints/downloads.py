"""Download files over https only; a failed download leaves no file."""

import hashlib
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.request import HTTPRedirectHandler, Request, build_opener

from kdtoolbox.checkpoints.writing import remove_partials, write_whole

# Seconds without any data until a download fails.
_TIMEOUT = 60


def download(url: str, path: Path, digest: str | None = None) -> None:
    """Download a file to ``path``; a failed download leaves ``path`` unchanged.

    Several processes may download the same file at once.

    Args:
        url: An https URL. It may only redirect to https URLs.
        path: File to write. Its folder has to exist.
        digest: First hexadecimal digits of the file's SHA-256.

    Raises:
        OSError: If the file is not available over https, is incomplete, has another
            digest, or cannot be written.
    """
    if not url.startswith('https://'):
        raise OSError(f'only https:// is fetched, not {url}')
    remove_partials(path.parent)
    request = Request(url, headers={'User-Agent': 'kdtoolbox'})  # noqa: S310
    try:
        _download(request, path, digest)
    except HTTPException as error:
        raise OSError(f'broke off: {error!r}') from error


def _download(request: Request, path: Path, digest: str | None) -> None:
    opener = build_opener(_OnlyHttps)
    with opener.open(request, timeout=_TIMEOUT) as answer:
        # None if the server sends no length.
        size: int | None = answer.length
        received, actual = 0, hashlib.sha256()
        with write_whole(path, size) as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                actual.update(chunk)
                received += len(chunk)
            if size is not None and received != size:
                raise OSError(f'broke off after {received:,} of {size:,} bytes')
            if digest and not actual.hexdigest().startswith(digest):
                raise OSError(
                    f'the hash in its name is {digest}, but the SHA-256 of the '
                    f'received file starts with {actual.hexdigest()[: len(digest)]}'
                )


class _OnlyHttps(HTTPRedirectHandler):
    """Raise on redirects to other schemes than https."""

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> Request | None:
        if not newurl.startswith('https://'):
            raise OSError(f'it redirects to {newurl}, and only https:// is fetched')
        return super().redirect_request(req, fp, code, msg, headers, newurl)
