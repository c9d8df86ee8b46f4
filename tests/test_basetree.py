"""Checkouts of older commits, by real git: which commit, which files, what is left behind, what is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.basetree import BaseTree, last_change
from pytest_kerneltune.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
Repository = import_module("repositories").Repository
ATTRIBUTES = "*.bat text eol=crlf\n*.up filter=upper\n"


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    return Repository(tmp_path / "project")


def state(repository: Any) -> dict[str, bytes]:
    """Every file of the repository's own folder."""
    folder = repository.root / ".git"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_files_are_those_of_the_merge_base_and_nothing_is_left(repository: Any, tmp_path: Path) -> None:
    first = repository.commit({"a.py": "A = 1\n", "tests/b.py": "B = 1\n", "old.py": ""})
    repository.git("branch", "main-line")
    repository.git("rm", "-q", "old.py")
    repository.commit({"a.py": "A = 2\n"})
    repository.git("checkout", "-q", "main-line")
    repository.commit({"a.py": "A = 3\n"})
    repository.git("checkout", "-q", "main")
    repository.write({"a.py": "A = 4\n", "new.py": ""})
    hook = repository.root / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    before = state(repository)
    tree = BaseTree.at_merge_base(repository.root / "tests", "main-line")
    assert (tree.commit, tree.remarks) == (first, ())
    assert {p.name for p in tree.folder.rglob("*") if p.is_file()} == {"a.py", "b.py", "old.py"}
    assert ((tree.folder / "a.py").read_text(), tree.folder.name) == ("A = 1\n", "project")
    assert tree.root_in_base == tree.folder / "tests"
    assert tree.places.tracked == {"a.py", "tests/b.py"}
    assert last_change(repository.root, repository.root / "tests" / "b.py") == first
    assert last_change(repository.root, repository.root / "a.py") == repository.git("rev-parse", "HEAD")
    assert last_change(repository.root, repository.root / "new.py") == last_change(tmp_path, tmp_path / "a.py") == ""
    assert state(repository) == before
    shared = BaseTree.shared(repository.root / "tests", tree.to_json())
    shared.close()
    assert (shared.places, shared.root_in_base) == (tree.places, tree.root_in_base)
    assert tree.folder.exists()
    tree.close()
    assert not tree.folder.parent.exists()


def test_line_ends_filters_and_linked_worktrees(
    repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.git("config", "filter.upper.smudge", "tr a-z A-Z")
    repository.git("config", "core.sparseCheckout", "true")
    base = repository.commit({".gitattributes": ATTRIBUTES, "run.bat": "x\ny\n", "data.up": "text\n"})
    repository.git("rm", "-q", ".gitattributes")
    repository.commit({"run.bat": "z\n"})
    repository.git("worktree", "add", "-q", str(tmp_path / "linked"), "-b", "linked")
    monkeypatch.setenv("GIT_DIR", str(repository.root / ".git"))  # as in a hook of git
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    before = state(repository)
    tree = BaseTree.at_commit(tmp_path / "linked", base[:12])
    assert tree is not None
    assert (tree.folder / "run.bat").read_bytes() == b"x\r\ny\r\n"
    assert (tree.folder / "data.up").read_text() == "TEXT\n"
    assert tree.places.top == tmp_path / "linked"
    assert state(repository) == before
    tree.close()


def test_submodules_are_left_out_with_a_remark(repository: Any, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit({"inner.py": ""})
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner.root), "vendored")
    repository.commit({"a.py": ""})
    tree = BaseTree.at_merge_base(repository.root, "HEAD")
    assert tree.remarks == ("the submodule vendored is not compared: its files are today's",)
    tree.close()


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        ("", "it must be a branch, tag or commit"),
        ("-x", "--against=-x: it must be a branch"),
        ("origin/main", "--against=origin/main: git knows no such commit; `git fetch` it"),
        ("unrelated", "--against=unrelated: it and HEAD have no commit in common$"),
    ],
)
def test_what_cannot_be_compared_with_is_named(repository: Any, ref: str, text: str) -> None:
    repository.commit({"a.py": ""})
    repository.git("checkout", "-q", "--orphan", "unrelated")
    repository.git("commit", "-qm", "other")
    repository.git("checkout", "-q", "main")
    with pytest.raises(UsageError, match=text):
        BaseTree.at_merge_base(repository.root, ref)
    assert BaseTree.at_commit(repository.root, "f" * 40) is None
    assert BaseTree.at_commit(repository.root, "--help") is None


def test_a_shallow_clone_says_how_to_deepen_it(repository: Any, tmp_path: Path) -> None:
    repository.commit({"a.py": ""})
    repository.git("checkout", "-qb", "work")
    repository.commit({"b.py": ""})
    repository.git("checkout", "-q", "main")
    repository.commit({"c.py": ""})
    clone = tmp_path / "clone"
    origin = f"file://{repository.root}"
    subprocess.run(["git", "clone", "-q", "--depth=1", "--no-single-branch", origin, str(clone)], check=True)
    with pytest.raises(UsageError, match=r"have no commit in common; the clone is shallow.*unshallow.*fetch-depth: 0"):
        BaseTree.at_merge_base(clone, "origin/work")
    with pytest.raises(UsageError, match=r"git knows no such commit; fetch more history.*fetch-depth: 0"):
        BaseTree.at_merge_base(clone, "origin/gone")


def test_no_repository_no_commit_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--against=main: .*not a git repository.* \(in pytest's root directory /"):
        BaseTree.at_merge_base(tmp_path, "main")
    assert BaseTree.at_commit(tmp_path, "a" * 40) is None
    empty = Repository(tmp_path / "empty")
    with pytest.raises(UsageError, match="--against=HEAD: git knows no such commit"):
        BaseTree.at_merge_base(empty.root, "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("git") is None
    with pytest.raises(UsageError, match="--against=main: git is not on the PATH"):
        BaseTree.at_merge_base(tmp_path, "main")
