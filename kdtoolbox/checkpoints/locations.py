"""Resolve the name of a checkpoint to a local file, and download it if necessary."""

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
    """Return the local path of a checkpoint. Downloads go to torch's cache.

    Args:
        source: A path, an https URL, or a name in mmengine's tables, such as
            ``torchvision://resnet50`` or ``open-mmlab://...``. If the name of a
            downloaded file ends with a hash, as those of OpenMMLab do, it is checked.

    Raises:
        ValueError: If the file or name does not exist, the file is not available over
            https, or it does not match the hash in its name.
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
            f'checkpoint {source!r}: only https:// is fetched; download it and name '
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
            f"checkpoint {source!r}: mmengine's tables have no such model; close: "
            + (', '.join(close) or 'none')
        )
    return urls[name]


def _torchvision_models() -> Mapping[str, str]:
    try:
        return get_torchvision_models()
    except ImportError:
        # mmengine reads the table from torchvision, but ships an older one, too.
        table = Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json'
        return mmengine.load(table)


def _fetch(url: str) -> Path:
    """Download to the cache that torch and mmengine share, once per node."""
    name = url.rpartition('/')[2].partition('?')[0]
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    digest = hash_in_name(name)
    if digest is None:
        # Names without a hash, such as epoch_12.pth, are not unique.
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
                'download it and name its path'
            ) from error
    elif digest is not None and not file_digest(path).startswith(digest):
        raise ValueError(
            f"'{path}', the cached file of {url!r}, does not match the hash in its "
            'name; remove it to fetch it again'
        )
