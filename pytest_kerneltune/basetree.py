"""The files of an older commit, in a temporary folder: what ``--against`` compares with.

Git fills the folder through an index of its own, so nothing is left in the repository, whatever becomes of this
process: no worktree to prune, no lock, no hook run. Attributes and filters (line ends, LFS) are those of the commit,
and a partial clone fetches what it misses. Submodules are not checked out: what lies in them is today's.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.redirect import Places
from pytest_kerneltune.settings import environment

_LIMIT_S = 300.0
_TEST_FILES = ("test_*.py", "*_test.py")  # what pytest collects, unless told otherwise
_OF_ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_NAMESPACE")
_PLAIN = ("core.hooksPath=/dev/null", "core.splitIndex=false", "core.fsmonitor=false", "core.untrackedCache=false")
_FETCH = "fetch more history: `git fetch --unshallow`, or fetch-depth: 0 of actions/checkout"
_SHOWN = 12  # digits of a commit
_SAID = 400  # characters of what git says


class GitError(UsageError):
    """Git failed, or is not there; the text is what it says."""


@dataclass
class BaseTree:
    """The files of ``commit``: ``folder`` corresponds to the repository's top level, ``root_in_base`` to the root
    directory of today's tests. ``remarks`` say what is not there. ``owned`` is the temporary directory, None where
    another process holds it."""

    commit: str
    places: Places
    root_in_base: Path
    remarks: tuple[str, ...] = ()
    owned: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def at_merge_base(cls, root: Path, ref: str) -> BaseTree:
        """The newest commit that ``ref`` and HEAD have in common; ``root`` is the root directory of today's tests.

        Raises UsageError that names --against: no git, no repository, an unknown ref, no common commit.
        """
        try:
            return _checked_out(root, _merge_base(root, ref))
        except GitError as error:
            raise UsageError(f"--against={ref}: {error}") from None

    @classmethod
    def at_commit(cls, root: Path, commit: str) -> BaseTree | None:
        """The files of ``commit`` (hexadecimal, 7 digits at least); None where the repository does not have them."""
        try:
            return _checked_out(root, _commit(root, commit)) if re.fullmatch("[0-9a-f]{7,64}", commit) else None
        except GitError:
            return None

    @classmethod
    def shared(cls, root: Path, data: Mapping[str, Any]) -> BaseTree:
        """The tree that another process holds as long as this one lives; ``data`` is its ``to_json()``."""
        top, folder = Path(data["top"]), Path(data["folder"])
        places = Places(top, folder, _tracked(top))
        return cls(data["commit"], places, folder / root.resolve().relative_to(top), tuple(data["remarks"]))

    def to_json(self) -> dict[str, Any]:
        """What ``shared`` takes in another process on this machine."""
        places = {"top": str(self.places.top), "folder": str(self.folder)}
        return {"commit": self.commit, **places, "remarks": list(self.remarks)}

    @property
    def folder(self) -> Path:
        return self.places.checkout

    @property
    def shown(self) -> str:
        """The commit, short."""
        return self.commit[:_SHOWN]

    def test_file(self, file: str, fixture: str) -> str:
        """A test file that names ``fixture``, which ``file`` holds, a conftest file or plugin; "" where there is none.

        Both are relative to the root directory.
        """
        root, word = self.root_in_base, re.compile(rf"\b{re.escape(fixture)}\b")
        if not (root / file).is_file():
            return ""
        tests = sorted(path for name in _TEST_FILES for path in (root / file).parent.rglob(name))
        found = (path for path in tests if word.search(path.read_text(errors="replace")))
        return next((path.relative_to(root).as_posix() for path in found), "")

    def close(self) -> None:
        """Remove the folder, unless another process holds it."""
        if self.owned is not None:
            self.owned.cleanup()
            self.owned = None


def head(root: Path) -> dict[str, str]:
    """The commit that is checked out at ``root``, and whether files that it holds were changed since; empty without."""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD").strip()
        return {"commit": commit, **({"changes": "uncommitted"} if _git(root, "status", "--porcelain", "-uno") else {})}
    except GitError:
        return {}


def last_change(root: Path, file: Path) -> str:
    """The newest commit in HEAD's history that changed ``file``; "" where git knows of none."""
    try:
        return _git(root, "log", "-1", "--format=%H", "--", str(file)).strip()
    except GitError:
        return ""


def _merge_base(root: Path, ref: str) -> str:
    if not ref or ref.startswith("-"):
        raise GitError("it must be a branch, tag or commit, as in --against=origin/main")
    try:
        _git(root, "rev-parse", "--git-dir")
    except GitError as error:
        raise GitError(f"{error} (in pytest's root directory {root})") from None
    try:
        commit = _commit(root, ref)
    except GitError:
        hint = _FETCH if _is_shallow(root) else f"`git fetch` it, or see `git branch -a` (in {root})"
        raise GitError(f"git knows no such commit; {hint}") from None
    if not _known(root, "HEAD"):
        raise GitError("nothing is committed yet, so there is nothing to compare with")
    try:
        return _git(root, "merge-base", commit, "HEAD").split()[0]
    except (GitError, IndexError):
        hint = f"; the clone is shallow, so {_FETCH}" if _is_shallow(root) else ""
        raise GitError(f"it and HEAD have no commit in common{hint}") from None


def _commit(root: Path, ref: str) -> str:
    return _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()


def _known(root: Path, ref: str) -> bool:
    try:
        return bool(_commit(root, ref))
    except GitError:
        return False


def _is_shallow(root: Path) -> bool:
    return _git(root, "rev-parse", "--is-shallow-repository").strip() == "true"


def _checked_out(root: Path, commit: str) -> BaseTree:
    root = root.resolve()
    top = Path(_git(root, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
    owned = tempfile.TemporaryDirectory(prefix="kerneltune-base-", ignore_cleanup_errors=True)
    try:
        folder = Path(owned.name).resolve() / (top.name or "base")
        folder.mkdir()
        index = {"GIT_INDEX_FILE": str(Path(owned.name, "index"))}
        places = [f"--git-dir={_git(root, 'rev-parse', '--absolute-git-dir').rstrip(chr(10))}", f"--work-tree={folder}"]
        _git(folder, *places, "read-tree", "--reset", "-u", "--no-sparse-checkout", commit, env=index)
        entries = _git(folder, *places, "ls-files", "--stage", "-z", env=index).split("\0")
        submodules = [entry.partition("\t")[2] for entry in entries if entry.startswith("160000 ")]
        remarks = tuple(f"the submodule {name} is not compared: its files are today's" for name in submodules)
        return BaseTree(commit, Places(top, folder, _tracked(top)), folder / root.relative_to(top), remarks, owned)
    except BaseException:
        owned.cleanup()
        raise


def _tracked(top: Path) -> frozenset[str]:
    return frozenset(filter(None, _git(top, "ls-files", "-z").split("\0")))


def _git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What git prints, run in ``folder``; raises GitError."""
    own = {name: value for name, value in environment().items() if name not in _OF_ANOTHER_REPOSITORY}
    own |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", **(env or {})}
    options = [part for setting in _PLAIN for part in ("-c", setting)]
    try:
        done = subprocess.run(
            ["git", *options, *arguments],
            cwd=folder,
            env=own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise GitError("git is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} took longer than {_LIMIT_S:.0f} s") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise GitError(said[:_SAID] if said else f"git {arguments[0]} failed")
    return done.stdout.decode(errors="surrogateescape")
