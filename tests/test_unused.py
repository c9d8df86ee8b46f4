"""Which files of a store go when there are too many."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pytest_kerneltune.disk import unused


def test_the_longest_unused_files_are_surplus(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abcd"]
    for path in paths:
        path.write_bytes(b"x" * 100)
        unused.touch(path)
    unused.touch(paths[0])
    link, fifo, folder = (tmp_path / name for name in ("link", "fifo", "folder"))
    link.symlink_to(paths[0])
    os.mkfifo(fifo)
    folder.mkdir()
    others = [link, fifo, folder, tmp_path / "nowhere"]
    assert unused.surplus([*paths, *others], 400) == []
    assert unused.surplus([*paths, *others], 250) == paths[1:3]
    unused.touch(tmp_path / "nowhere")


def test_only_what_killed_writers_left_long_ago_is_removed(tmp_path: Path) -> None:
    names = {f".kerneltune-{digit * 16}.tmp" for digit in "abc"} | {".kerneltune-mine", "file"}
    for name in names:
        (tmp_path / name).write_text("content")
    old, young, folder = sorted(name for name in names if name.endswith(".tmp"))
    (tmp_path / folder).unlink()
    (tmp_path / folder).mkdir()
    long_ago = time.time() - 2 * 3600
    for name in names - {young}:
        os.utime(tmp_path / name, (long_ago, long_ago))
    unused.remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names - {old}
    unused.remove_stale(tmp_path / "nowhere")
