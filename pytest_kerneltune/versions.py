"""Versions of what bears on a result, read without importing any of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

_CUPY = ("cupy", "cupy-cuda12x", "cupy-cuda13x")
_DISTRIBUTIONS = (
    *("pytest-kerneltune", "pytest", "pytest-xdist", "numpy", "scikit-learn"),
    *("torch", "triton", "helion", *_CUPY),
)
_TOOLCHAINS = {
    "c": (),
    "triton": ("torch", "triton"),
    "helion": ("torch", "triton", "helion"),
    "cuda": ("torch", *_CUPY, "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
}
"""Kind of kernel to the distributions that decide what becomes of its source."""

_ANY_TOOLCHAIN = ("numpy", "torch", "triton", "helion", *_CUPY)
"""Those of a plain callable and of third parties' kinds, which may use any; Python's version counts then, too."""

_PATIENCE_S = 10.0


def versions() -> dict[str, str]:
    """Python's version and those of the packages that bear on a result."""
    return {"python": platform.python_version(), **_installed(_DISTRIBUTIONS)}


def toolchain(kind: str, device: Mapping[str, str], compiler: str = "") -> dict[str, str]:
    """The versions that make another kernel of a ``kind`` of the same source, for a strict fingerprint.

    ``device`` are the device's soft facts (the driver's version is one), ``compiler`` the program that a C kernel is
    compiled with, "" for other kinds.
    """
    found = {**device, **_installed(_TOOLCHAINS.get(kind, _ANY_TOOLCHAIN))}
    if kind not in _TOOLCHAINS:
        found["python"] = platform.python_version()
    if compiler:
        found["compiler"] = compiler_version(compiler)
    return found


@lru_cache(maxsize=32)
def compiler_version(compiler: str) -> str:
    """The first line of what ``compiler --version`` says; "unknown" where it says nothing, or is not there."""
    program = shutil.which(compiler)
    if program is None:
        return "unknown"
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if lines and not done.returncode else "unknown"


def _installed(distributions: Iterable[str]) -> dict[str, str]:
    found = {name: installed_version(name) for name in distributions}
    return {name: version for name, version in found.items() if version}


@lru_cache(maxsize=64)
def installed_version(name: str) -> str:
    """The version of a distribution, "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
