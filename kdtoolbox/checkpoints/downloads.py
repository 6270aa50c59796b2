"""Fetch files by https and nothing else, whole or not at all."""

import hashlib
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.request import HTTPRedirectHandler, Request, build_opener

from kdtoolbox.checkpoints.writing import remove_partials, write_whole

# A server that sends nothing for so many seconds is given up.
_PATIENCE = 60


def download(url: str, path: Path, digest: str | None = None) -> None:
    """Fetch a file to ``path``, which is the whole file or what it was before.

    Several processes may fetch the same file at once.

    Args:
        url: An https URL. Where it redirects to has to be one, too.
        path: File to write; its folder has to exist.
        digest: Start of the file's SHA-256 in hexadecimal digits.

    Raises:
        OSError: If the file cannot be had by https, is cut short, has another digest,
            or cannot be written.
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
    with opener.open(request, timeout=_PATIENCE) as answer:
        # None where the server does not tell it.
        size: int | None = answer.length
        received, found = 0, hashlib.sha256()
        with write_whole(path, size) as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                found.update(chunk)
                received += len(chunk)
            if size is not None and received != size:
                raise OSError(f'broke off after {received:,} of {size:,} bytes')
            if digest and not found.hexdigest().startswith(digest):
                raise OSError(
                    f'its hash in the name is {digest}, the SHA-256 of what came '
                    f'starts with {found.hexdigest()[: len(digest)]}'
                )


class _OnlyHttps(HTTPRedirectHandler):
    """Follow no redirection that leaves https."""

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
