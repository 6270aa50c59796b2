import gc
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdtoolbox.hooks.resources import count_resources

Toy = SimpleNamespace


def test_resources_are_logged_like_losses(toy: Toy, make_runner: Callable) -> None:
    hook = dict(type='kdtoolbox.ResourceHook')
    runner = make_runner(toy.distiller(toy.gfl()), custom_hooks=[hook])
    runner.train()
    scalars = runner.message_hub.log_scalars
    for name in ('rss_mb', 'threads', 'files'):
        assert scalars[f'train/{name}'].current() > 0
    assert scalars['train/hooks'].current() == 0


def test_memory_threads_files_and_hooks_are_counted(toy: Toy, tmp_path: Path) -> None:
    model: Any = toy.build_distiller(toy.gfl())
    # Objects of earlier tests could be freed between the two measurements.
    gc.collect()
    before = count_resources(model)
    model.student.neck.register_forward_hook(print)
    model.teacher.model.neck.register_forward_pre_hook(print)
    ready = threading.Event()
    thread = threading.Thread(target=ready.wait)
    thread.start()
    # Not from the heap, where memory that earlier tests have freed may be used again.
    ballast = mmap.mmap(-1, 2**26)
    ballast.write(b'\1' * len(ballast))
    with (tmp_path / 'file').open('w'):
        after = count_resources(model)
    ready.set()
    thread.join()
    assert after['hooks'] == before['hooks'] + 2
    assert after['threads'] == before['threads'] + 1
    assert after['files'] == before['files'] + 1
    assert after['rss_mb'] >= before['rss_mb'] + 0.9 * len(ballast) / 2**20
