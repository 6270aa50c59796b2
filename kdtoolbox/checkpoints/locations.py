"""Find the file that the name of a checkpoint means, and fetch it if need be."""

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import mmengine
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log
from mmengine.runner import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from kdtoolbox.checkpoints.digests import file_digest, hash_in_name
from kdtoolbox.checkpoints.downloads import download


def locate(source: str) -> Path:
    """Return the path of a checkpoint; what is fetched goes to torch's cache.

    Args:
        source: A path, an https URL, or a name that mmengine knows, such as
            ``torchvision://resnet50`` or ``open-mmlab://...``. A hash in the name of a
            file to fetch, as OpenMMLab's have, is checked.

    Raises:
        ValueError: If there is no such file or name, it is not to be had by https, or
            it is not what the hash in its name says.
    """
    scheme, _, name = source.rpartition('://')
    if scheme in ('torchvision', 'modelzoo'):
        source = _look_up(name, _torchvision_models(), source)
    elif scheme in ('open-mmlab', 'openmmlab'):
        name = get_deprecated_model_names().get(name, name)
        source = _look_up(name, get_external_models(), source)
    elif scheme == 'mmcls':
        source = _look_up(name, get_mmcls_models(), source)
    if source.startswith('https://'):
        return _fetch(source)
    if '://' in source:
        raise ValueError(
            f'checkpoint {source!r}: only https:// is fetched; download it and give '
            'its path'
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f'checkpoint {source!r}: there is no such file')
    return path


def _look_up(name: str, urls: Mapping[str, str], source: str) -> str:
    if name not in urls:
        close = difflib.get_close_matches(name, urls, n=3)
        raise ValueError(
            f'checkpoint {source!r}: mmengine knows no such model; close: '
            + (', '.join(close) or 'none')
        )
    return urls[name]


def _torchvision_models() -> Mapping[str, str]:
    try:
        return get_torchvision_models()
    except ImportError:
        # The old names do not need torchvision; mmengine ships them.
        table = Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json'
        return mmengine.load(table)


def _fetch(url: str) -> Path:
    """Download into the cache that torch and mmengine share, once per node."""
    name = url.rpartition('/')[2].partition('?')[0]
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    digest = hash_in_name(name)
    if digest is None:
        # Many files are called epoch_12.pth.
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / name
    if get_local_rank() == 0:
        _fetch_to(path, url, digest)
    barrier()
    return path


def _fetch_to(path: Path, url: str, digest: str | None) -> None:
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            print_log(f'fetching {url} to {path}', 'current')
            download(url, path, digest)
        except OSError as error:
            raise ValueError(
                f"checkpoint {url!r} could not be fetched to '{path}' ({error}); "
                'download it and give its path'
            ) from error
    elif digest is not None and not file_digest(path).startswith(digest):
        raise ValueError(
            f"'{path}', which {url!r} was once fetched to, is not what the hash in "
            'its name says; remove it to fetch it again'
        )
