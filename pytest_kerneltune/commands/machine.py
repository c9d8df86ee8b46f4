"""What bears on measurements on this machine: software, compilers, caches, the GPU's state and who else uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kerneltune import nvidia
from pytest_kerneltune.backends.code_store import CodeStore
from pytest_kerneltune.options import code_directory, default_cache_directories
from pytest_kerneltune.versions import installed_version

_DISTRIBUTIONS = ("torch", "triton", "helion")
_CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x")
_COMPILERS = ("cc", "gcc", "clang", "nvcc")
_VERSION_LIMIT_S = 5.0


@dataclass(frozen=True)
class Cache:
    """A directory that results are kept in; ``problem`` says why it cannot be written to ("" where it can)."""

    name: str
    path: str
    problem: str


@dataclass(frozen=True)
class GpuState:
    """A GPU as its driver describes it: ``state`` as ``nvidia.query_state`` has it, ``cuda`` the newest version that
    the driver supports, ``guests`` other processes on it (None: unknown)."""

    name: str
    uuid: str
    facts: tuple[str, ...]
    state: Mapping[str, str]
    cuda: str
    guests: Mapping[int, str] | None

    def number(self, name: str) -> float | None:
        """A property in nvidia-smi's unit (MHz, W, C); None where it is unknown."""
        try:
            return float(self.state[name])
        except (KeyError, ValueError):
            return None

    @property
    def reasons(self) -> int:
        """The bits of the active clock event reasons; 0 where unknown."""
        try:
            return int(self.state.get("clocks_event_reasons.active", "0"), 16)
        except ValueError:
            return 0


def software() -> dict[str, str]:
    """Versions of what kernels are written with, "" where it is not installed. Nothing is imported."""
    found = {name: installed_version(name) for name in _DISTRIBUTIONS}
    cupy = next((name for name in _CUPY if installed_version(name)), _CUPY[0])
    return found | {cupy: installed_version(cupy)}


def compilers() -> dict[str, str]:
    """Compilers on the PATH, each with the first line of its version (the last one of nvcc's)."""
    return {name: _compiler_version(name, path) for name in _COMPILERS if (path := shutil.which(name))}


def _compiler_version(name: str, path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return f"does not run: exit status {done.returncode}"
    return lines[-1 if name == "nvcc" else 0].strip()


def caches(environment: Mapping[str, str]) -> list[Cache]:
    """Where tuning results, Triton's compiled kernels and temporary files go, unless the ini file says otherwise.

    Where CudaKernels' compiled code goes is one of them where it can't be used.
    """
    home = Path(environment.get("TRITON_HOME") or environment.get("HOME") or Path.home())
    triton = Path(environment.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    tuning = [("tuning", path) for path in default_cache_directories(environment)[:1]]
    places = [*tuning, ("Triton", triton), ("temporary", _temporary())]
    found = [Cache(name, str(path), _problem(path)) for name, path in places]
    code = code_directory(environment)
    problem = CodeStore(code).problem
    return [*found, *([Cache("code", str(code), problem)] if problem else [])]


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # no candidate can be written to
        return Path(os.sep, "tmp")


def _problem(path: Path) -> str:
    """Why no file can be written to the directory, or to the nearest one above it that is there; "" where one can."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"{existing}: {error.strerror}"


def gpu_hidden() -> bool:
    """Whether this machine has an NVIDIA GPU, whatever PyTorch says."""
    return Path("/dev/nvidia0").exists() or nvidia.query_gpu(("name",), "") is not None


def guests_on(uuid: str, processes: Sequence[tuple[str, int, str]] | None) -> dict[int, str] | None:
    """Of ``processes`` (as ``nvidia.query_guests`` has them) those on the GPU ``uuid``, but for this process."""
    if processes is None:
        return None
    own = os.getpid()
    return {pid: name for gpu, pid, name in processes if gpu in (uuid, "") and own not in nvidia.lineage(pid)}
