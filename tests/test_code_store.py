"""Compiled code, kept for its user alone: given back as it was, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.backends.code_store import CONTENT_BYTES, CodeStore, Entry

KEY = "ab" + "0" * 62
ENTRY = Entry(b"code", {"name": "kernel"})
NOBODY = 65534


def test_a_store_gives_back_texts_bytes_and_notes(tmp_path: Path) -> None:
    store = CodeStore(tmp_path)
    entries = {
        "aa1": Entry("text \n", {"name": "kernel"}),
        "aa2": Entry(b"\x00\n\xff", {}),
        "bb1": Entry("", {"n": [1]}),
    }
    for key, entry in entries.items():
        store.put(key, entry)
    assert {key: CodeStore(tmp_path).get(key) for key in entries} == entries
    assert store.get("cc1") is None


@pytest.mark.parametrize("notes", [{"tuple": (1, 2)}, {"object": object()}, {1: "number"}])
def test_what_json_would_change_is_not_kept(tmp_path: Path, notes: dict[Any, Any]) -> None:
    store = CodeStore(tmp_path)
    store.put("aa1", Entry("text", notes))
    assert store.get("aa1") is None


def test_a_store_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = CodeStore(tmp_path, limit=256 * 5000)
    noise = random.Random(0)
    for i in range(12):
        store.put(f"aa{i}", Entry(noise.randbytes(1000), {}))
        store.get("aa0")
    kept = [i for i in range(12) if store.get(f"aa{i}") is not None]
    assert kept == [0, 9, 10, 11]
    store.put("aa_large", Entry(noise.randbytes(6000), {}))
    assert store.get("aa_large") is None
    assert len(list((tmp_path / "aa").iterdir())) == 4


def test_a_store_that_cannot_be_written_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = CodeStore(tmp_path / "file")
    store.put("aa1", Entry("text", {}))
    assert store.get("aa1") is None


def kept(directory: Path) -> Path:
    """The file of ENTRY in a new store."""
    CodeStore(directory).put(KEY, ENTRY)
    assert CodeStore(directory).get(KEY) == ENTRY
    return directory / KEY[:2] / KEY[2:]


def test_only_its_user_may_write_to_a_store(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = kept(tmp_path / "made" / "store")
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]


@pytest.mark.parametrize("above", [0, 1, 2], ids=["entry", "folder", "store"])
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_what_others_may_write_to_is_no_store(tmp_path: Path, above: int, mode: int) -> None:
    file = kept(tmp_path / "store")
    place = [file, *file.parents][above]
    place.chmod(mode)
    store = CodeStore(tmp_path / "store")
    assert store.get(KEY) is None
    store.put(KEY, ENTRY)
    assert (store.get(KEY) is None) == (above > 0)  # an entry is put anew, a directory is left as it is
    assert ("chmod 700" in store.problem) == (above == 2)
    if above:
        assert place.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
@pytest.mark.parametrize("above", [0, 1, 2], ids=["entry", "folder", "store"])
def test_what_belongs_to_others_is_no_store(tmp_path: Path, above: int) -> None:
    file = kept(tmp_path / "store")
    os.chown([file, *file.parents][above], NOBODY, NOBODY)
    assert CodeStore(tmp_path / "store").get(KEY) is None
    assert bool(CodeStore(tmp_path / "store").problem) == (above == 2)


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("1")))


def as_fifo(path: Path) -> None:
    path.rename(path.with_name("1"))
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.rename(path.with_name("1"))
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("replace", [linked, as_fifo, as_device])
@pytest.mark.parametrize("above", [0, 1, 2], ids=["entry", "folder", "store"])
def test_no_link_is_followed_and_no_pipe_is_waited_for(
    tmp_path: Path, above: int, replace: Callable[[Path], None]
) -> None:
    file = kept(tmp_path / "store")
    place = [file, *file.parents][above]
    replace(place)
    store, moved = CodeStore(tmp_path / "store"), place.with_name("1")
    assert store.get(KEY) is None
    before = sorted(moved.rglob("*"))
    store.put(KEY[:-1] + "1", ENTRY)
    assert sorted(moved.rglob("*")) == before
    assert (store.get(KEY[:-1] + "1") is None) == (above > 0)


def packed(content: bytes, key: str = KEY) -> bytes:
    body = zlib.compress(content, 9)
    return hashlib.sha256(key.encode() + b"\0" + body).digest() + body


HEADER = json.dumps({"text": False, "notes": {}}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: packed(HEADER + bytes(CONTENT_BYTES)), id="bomb"),
        pytest.param(lambda: packed(HEADER + b"code", "cd" + KEY[2:]), id="another's"),
        pytest.param(lambda: packed(b"[" * 100_000 + b"\n"), id="deep"),
        pytest.param(lambda: packed(b'{"text": false, "notes": [1]}\n'), id="notes"),
        pytest.param(lambda: packed(b'{"text": true, "notes": {}}\n\xff'), id="text"),
        pytest.param(lambda: packed(HEADER + b"code")[:-3], id="cut"),
        pytest.param(lambda: packed(HEADER + random.Random(0).randbytes(3 << 20)), id="large"),
        pytest.param(lambda: b"", id="empty"),
    ],
)
def test_a_bad_entry_is_none_and_is_made_again(tmp_path: Path, content: Callable[[], bytes]) -> None:
    file, store = kept(tmp_path / "store"), CodeStore(tmp_path / "store")
    file.write_bytes(packed(HEADER + b"other"))
    assert store.get(KEY) == Entry(b"other", {})
    file.write_bytes(content())
    assert store.get(KEY) is None
    store.put(KEY, ENTRY)
    assert store.get(KEY) == ENTRY


def test_content_that_would_not_be_read_is_not_kept(tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "store")
    store.put(KEY, Entry(bytes(CONTENT_BYTES), {}))
    assert not (tmp_path / "store").exists()


def test_only_entries_and_what_killed_writers_left_long_ago_are_removed(tmp_path: Path) -> None:
    file, long_ago = kept(tmp_path / "store"), time.time() - 2 * 3600
    old, young, foreign = (
        file.with_name(name)
        for name in (".kerneltune-1111111111111111.tmp", ".kerneltune-2222222222222222.tmp", "notes.txt")
    )
    for path in (old, young, foreign):
        path.write_bytes(bytes(5000))
    for path in (old, foreign):
        os.utime(path, (long_ago, long_ago))
    store = CodeStore(tmp_path / "store", limit=256 * 300)
    for i in range(1, 6):
        store.put(KEY[:-1] + str(i), ENTRY)
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()
    assert not file.exists()
    assert store.get(KEY[:-1] + "5") == ENTRY


OTHER_USER = """
import os, sys
from pathlib import Path
from pytest_kerneltune.backends.code_store import CodeStore, Entry

os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
store = CodeStore(Path(sys.argv[1]))
print(store.get(sys.argv[3]))
store.put(sys.argv[3], Entry(b"evil", {}))
print(store.get(sys.argv[3]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_neither_uses_nor_spoils_a_store(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    file = kept(directory)
    for path in (file, *file.parents):
        if not path.is_relative_to(Path(tmp_path.anchor, "tmp")) or path == Path("/tmp"):
            break
        path.chmod(path.stat().st_mode | 0o055)
    command = [sys.executable, "-c", OTHER_USER, str(directory), str(NOBODY), KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["None", "None"]
    assert CodeStore(directory).get(KEY) == ENTRY
