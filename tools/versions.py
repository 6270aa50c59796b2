"""Print what a bug report needs to know of the machine and of installed packages."""

import argparse
import platform
import subprocess
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

import kdtoolbox

LIBRARIES = (
    *('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy', 'cv2'),
    *('timm', 'transformers', 'onnx', 'onnxruntime'),
)


def commit() -> str:
    """Return the commit of the clone that the package lies in, if it lies in one."""
    git = ['git', 'describe', '--always', '--dirty']
    folder = Path(kdtoolbox.__file__).parent
    try:
        found = subprocess.run(git, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return 'git is not installed'
    return found.stdout.strip() or 'not in a clone'


def gpus() -> str:
    """Return the names of the GPUs that torch sees, and the version of CUDA."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f'{", ".join(names)}; CUDA {torch.version.cuda}' if names else 'none'


def versions() -> dict[str, str]:
    """Return a line for each part.

    The forks and the original packages have the same import names, so each library is
    shown with the name of its package.
    """
    lines = dict(
        kdtoolbox=f'{kdtoolbox.__version__}, commit {commit()}',
        python=f'{platform.python_version()} on {platform.platform()}',
        gpus=gpus(),
    )
    packages = packages_distributions()
    for library in LIBRARIES:
        # A package that is installed twice is listed twice.
        names = dict.fromkeys(packages.get(library, []))
        lines[library] = (
            ', '.join(f'{name} {version(name)}' for name in names) or 'none'
        )
    return lines


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, line in versions().items():
        print(f'{name:<13} {line}')


if __name__ == '__main__':
    main()
