import sys
from pathlib import Path

import pytest

# The import mode of the suite leaves sys.path alone; the tests here share modules.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='session')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with the data that recipes name relative to it."""
    from layouts import make_layouts

    from kdtoolbox.datasets import PRESETS, make_digit_scenes

    root = tmp_path_factory.mktemp('front_door')
    make_layouts(root)
    for task, style in PRESETS.items():
        scenes = root / f'data/digits_{task}'
        make_digit_scenes(scenes, style, train=4, val=2, workers=1)
    return root
