"""Baseline files of a project, and the versions of one that git holds while a merge is unfinished."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_kerneltune.baseline import FOLDER
from pytest_kerneltune.errors import UsageError

_STAGES = ("1", "2", "3")


@dataclass(frozen=True)
class Stored:
    """A baseline file and the test module whose kernels it is of."""

    path: Path
    module: Path

    @property
    def orphaned(self) -> bool:
        """Whether the test module is gone."""
        return not self.module.exists()


def stored_files(folder: Path, baseline_dir: Path | None) -> list[Stored]:
    """The baseline files below ``folder``; with ``baseline_dir``, where all are kept, those in it, ``folder`` being
    pytest's root directory. Raises UsageError for a folder that is not there."""
    for each in filter(None, (folder, baseline_dir)):
        if not each.is_dir():
            raise UsageError(f"{str(each)!r} is no folder")
    if baseline_dir is None:
        return [_beside(path) for home in _homes(folder) for path in sorted(home.glob("*/*.json"))]
    return [_in_one(path, baseline_dir, folder) for path in sorted(baseline_dir.glob("*/**/*.json"))]


def _homes(folder: Path) -> Iterator[Path]:
    for at, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if Path(at).name == FOLDER:
            yield Path(at)
            names.clear()


def _beside(path: Path) -> Stored:
    return Stored(path, path.parents[2] / f"{path.stem}.py")


def _in_one(path: Path, baseline_dir: Path, root: Path) -> Stored:
    below = Path(*path.relative_to(baseline_dir).parts[1:])
    return Stored(path, root / below.with_name(f"{path.stem}.py"))


def merge_stages(path: Path) -> tuple[bytes | None, bytes, bytes]:
    """The file as the merge base (None: it is not there), the current and the other branch have it.

    Raises UsageError where git says that the file is not in an unfinished merge, or that one branch deleted it.
    """
    listed = _git(path, "ls-files", "--unmerged", "-z", "--", path.name).decode().split("\0")
    hashes = {fields[2]: fields[1] for line in listed if (fields := line.partition("\t")[0].split())}
    if not hashes:
        raise UsageError(f"{path} is in no unfinished merge: git holds one version of it only")
    contents = {stage: _git(path, "cat-file", "blob", digest) for stage, digest in hashes.items()}
    base, ours, theirs = (contents.get(stage) for stage in _STAGES)
    if ours is None or theirs is None:
        raise UsageError(f"{path} is deleted on one branch: keep it with `git add {path}`, or `git rm {path}`")
    return base, ours, theirs


def _git(path: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(path.absolute().parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise UsageError(f"git cannot tell of {path}: {said}") from error
