"""`make gpu` measures recipes that exist, and needs a GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_the_recipes_that_make_gpu_measures_exist() -> None:
    text = (ROOT / 'Makefile').read_text()
    [listed] = re.findall(r'^GPU_RECIPES := (.*?)\n\n', text, re.MULTILINE | re.DOTALL)
    recipes = listed.replace('\\', ' ').split()
    assert len(recipes) == 6
    for recipe in recipes:
        assert (ROOT / f'configs/{recipe}.py').is_file(), recipe


@pytest.mark.e2e
def test_make_gpu_says_that_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    run = subprocess.run(
        ['make', 'gpu', f'PY={sys.executable}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert 'make gpu: no CUDA device is there' in run.stderr
