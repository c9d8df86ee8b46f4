"""Versions of what bears on a result, read without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_DISTRIBUTIONS = (
    *("pytest-kerneltune", "pytest", "pytest-xdist", "numpy", "scikit-learn"),
    *("torch", "triton", "helion", "cupy-cuda12x", "cupy-cuda13x"),
)


def versions() -> dict[str, str]:
    """Python's version and those of the packages that bear on a result."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
