"""Git repositories of two versions, for tests that compare a kernel with itself as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

_IDENTITY = (
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@b.c",
    "-c",
    "init.defaultBranch=main",
    "-c",
    "commit.gpgsign=false",
)


class Repository:
    """A repository in ``root``, whose branch ``base`` stays at the first version that is committed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q")

    def git(self, *arguments: str) -> str:
        command = ["git", *_IDENTITY, *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    def commit(self, files: Mapping[str, str]) -> str:
        """Commit all that is there with ``files``; returns the commit."""
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-qm", "a version")
        return self.git("rev-parse", "HEAD")

    def versions(self, base: Mapping[str, str], today: Mapping[str, str]) -> None:
        """Commit ``base``, called so, and ``today`` on top of it."""
        self.commit(base)
        self.git("branch", "base")
        self.commit(today)
