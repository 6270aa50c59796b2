"""The version of kdtoolbox; setup.py reads this file without importing the package."""

__version__ = '0.9.0'
