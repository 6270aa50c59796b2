"""Packaging: the distribution carries configs, tools and model-index.yml in .mim."""

import os
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = Path('kdtoolbox', '.mim')
MIM_CONTENTS = ('configs', 'tools', 'model-index.yml')


def read_requirements(name: str) -> list[str]:
    """Return the requirements in `requirements/<name>.txt` without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def link_mim(mim: Path) -> None:
    """Link configs, tools and model index into the source tree's `.mim`."""
    mim.mkdir(exist_ok=True)
    for name in MIM_CONTENTS:
        link = mim / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(ROOT / name, mim))


def copy_mim(mim: Path) -> None:
    """Copy configs, tools and model index into the `.mim` of a build folder."""
    # An earlier build may have left files here that are gone from the tree.
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    for name in MIM_CONTENTS:
        source = ROOT / name
        if source.is_dir():
            caches = shutil.ignore_patterns('__pycache__')
            shutil.copytree(source, mim / name, ignore=caches)
        else:
            shutil.copy2(source, mim / name)


class BuildPy(build_py):
    """Add `.mim`: links for an editable install, copies outside the tree for a wheel.

    Every build, editable or not, runs this command, whatever the words on pip's
    command line were.
    """

    def run(self) -> None:
        """Build the package, then its `.mim`."""
        super().run()
        if self.editable_mode:
            link_mim(ROOT / MIM)
        else:
            copy_mim(Path(self.build_lib) / MIM)


setup(
    name='kdtoolbox',
    version=runpy.run_path(str(ROOT / 'kdtoolbox' / 'version.py'))['__version__'],
    description='Knowledge distillation for mmdet detectors and mmseg segmentors',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['kdtoolbox', 'kdtoolbox.*']),
    install_requires=read_requirements('runtime'),
    extras_require={
        name: read_requirements(name)
        for name in ('optional', 'foundation', 'tests', 'docs')
    },
    cmdclass={'build_py': BuildPy},
    zip_safe=False,
)
