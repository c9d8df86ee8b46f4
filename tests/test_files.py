"""Locks, atomic replacement and JSON documents, with real files and processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune import files
from pytest_kerneltune.errors import StoreError

ROOT = Path(files.__file__).parents[1]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)

COUNT = """
import sys
from pathlib import Path
from pytest_kerneltune.files import locked, read_json, write_json
path = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locked(path):
        write_json(path, (read_json(path) or 0) + 1)
"""
REPLACE = """
import sys
from pathlib import Path
from pytest_kerneltune.files import write_json
number = 0
while not Path(sys.argv[1] + ".stop").exists():
    write_json(Path(sys.argv[1]), [number] * 5000)
    number += 1
"""
HOLD = """
import sys, time
from pathlib import Path
from pytest_kerneltune.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A document whose lock another process holds, and what kills that process."""
    path = tmp_path / "document.json"
    with start(HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield path, lambda: process.send_signal(signal.SIGKILL)
        process.kill()


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Let no file grow beyond ``after_bytes``, as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@settings(deadline=None)
@given(value=JSON_VALUES)
def test_a_document_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "trip.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


def test_keys_are_sorted_and_the_form_does_not_depend_on_their_order(tmp_path: Path) -> None:
    files.write_json(tmp_path / "one", {"b": 1, "a": {"d": 2, "c": 3}})
    files.write_json(tmp_path / "two", {"a": {"c": 3, "d": 2}, "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_text().index('"a"') < (tmp_path / "one").read_text().index('"b"')


def test_a_missing_document_is_none(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "no" / "such.json") is None
    assert files.read_lines(tmp_path / "no" / "such.jsonl") == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b'{"a": [1, 2', "Expecting"),
        (b'{"a": 1} trailing', "Extra data"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "nested"),
        (b"[" * 65 + b"]" * 65, "nested"),
        (b'{"a":[' * 33 + b"]}" * 33, "nested"),
        (b"1" * 10_000, "4300"),
        (b'{"a": [-1' + b"0" * 400 + b"]}", "too large"),
        ("{}".encode("utf-16"), "utf-8"),
        (b"{}\0", "Extra data"),
        (b"\0" * 10, "Expecting value"),
        (b'"\xed\xa0\x80"', "utf-8"),
    ],
    ids=[
        *("empty", "truncated", "trailing", "nan", "not-utf8", "bom", "deeper", "deep", "mixed-deep", "huge-number"),
        *("large-number", "utf-16", "nul", "nuls", "surrogate"),
    ],
)
def test_a_garbled_document_is_an_error_that_names_it(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "garbled.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"garbled.json.*{complaint}"):
        files.read_json(path)


def test_an_oversized_document_is_neither_read_nor_written(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(files.MAX_BYTES + 10)
    with pytest.raises(StoreError, match=r"large.json.*64 MiB"):
        files.read_json(path)
    with pytest.raises(StoreError, match=r"other.json.*64 MiB"):
        files.write_json(tmp_path / "other.json", "x" * files.MAX_BYTES)
    with pytest.raises(StoreError, match=r"large.json.*64 MiB"):
        files.read_lines(path)
    with pytest.raises(StoreError, match=r"large.json.*64 MiB"):
        files.append_json(path, 1)
    assert names(tmp_path) == ["large.json"]
    assert path.stat().st_size == files.MAX_BYTES + 10


def test_a_file_of_too_many_lines_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"1\n" * (1 << 21))
    with pytest.raises(StoreError, match=r"journal.jsonl.*lines"):
        files.read_lines(tmp_path / "journal.jsonl")


def test_what_may_be_written_may_be_read(tmp_path: Path) -> None:
    """Half of a surrogate pair, which names of files may hold, among them."""
    deep: object = "\ud800"
    for _ in range(files.MAX_DEPTH // 2):
        deep = {"a": (deep,)}
    files.write_json(tmp_path / "deep.json", deep)
    assert str(files.read_json(tmp_path / "deep.json")).count("[") == files.MAX_DEPTH // 2
    for bad in ([deep], 10**400):
        with pytest.raises(StoreError, match=r"cannot write .*deep.json"):
            files.write_json(tmp_path / "deep.json", bad)


USES: dict[str, Callable[[Path], object]] = {
    "read": files.read_json,
    "lines": files.read_lines,
    "write": lambda path: files.write_json(path, 1),
    "write-below": lambda path: files.write_json(path, 1, path.parent),
    "append": lambda path: files.append_json(path, 1),
    "append-below": lambda path: files.append_json(path, 1, path.parent),
}
KINDS: dict[str, Callable[[Path], None]] = {
    "directory": Path.mkdir,
    "FIFO": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_file_is_neither_read_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, use: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    KINDS[kind](Path("odd.json"))
    before = Path("odd.json").lstat()
    said = "symbolic link" if (kind, use) == ("device", "write-below") else kind
    with pytest.raises(StoreError, match=rf"odd.json: it is a {said}, not a regular file"):
        USES[use](tmp_path / "odd.json")
    assert (Path("odd.json").lstat().st_ino, names(tmp_path)) == (before.st_ino, ["odd.json"])


@pytest.mark.parametrize("use", USES)
def test_a_path_that_no_system_takes_is_an_error(tmp_path: Path, use: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name in ("nul\0", "x" * 300, "circle"):
        with pytest.raises(StoreError, match=r"cannot (read|write) "):
            USES[use](tmp_path / name)


def test_below_a_shared_directory_no_link_is_written_through(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "link.json").symlink_to(target)
    for use in ("write-below", "append-below"):
        with pytest.raises(StoreError, match=r"link.json"):
            USES[use](tmp_path / "link.json")
    assert target.read_text() == "precious"


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*directory"):
        files.read_json(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot read .*Not a directory"):
        files.read_json(tmp_path / "file" / "inside.json")


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"a": float("inf")}, {"a": object()}, {1: 0, "a": 0}])
def test_data_that_is_no_json_changes_nothing(tmp_path: Path, data: object) -> None:
    path = tmp_path / "kept.json"
    files.write_json(path, "kept")
    with pytest.raises(StoreError, match=r"kept.json"):
        files.write_json(path, data)
    assert files.read_json(path) == "kept"
    assert names(tmp_path) == ["kept.json"]


def test_a_full_disk_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    files.write_json(path, "kept")
    with full_disk(after_bytes=1000), pytest.raises(StoreError, match=r"cannot write .*kept.json"):
        files.write_json(path, list(range(10_000)))
    assert files.read_json(path) == "kept"
    assert names(tmp_path) == ["kept.json"]


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*taken.json"):
        files.write_json(tmp_path / "taken.json", 1)
    assert names(tmp_path) == ["taken.json"]


def test_newlines_mode_and_links_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.touch(mode=0o640)
    link.symlink_to(real)
    files.write_text(link, "a\r\nb\n")
    assert link.is_symlink()
    assert real.read_bytes() == b"a\r\nb\n"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("root_mode", "folder_mode", "file_mode"),
    [(0o2770, 0o2770, 0o660), (0o775, 0o775, 0o664), (0o700, 0o700, 0o600), (0o1777, 0o755, 0o644)],
    ids=oct,
)
def test_what_is_made_below_a_shared_directory_has_its_permissions(
    tmp_path: Path, root_mode: int, folder_mode: int, file_mode: int
) -> None:
    root = tmp_path / "shared"
    root.mkdir()
    group = root.stat().st_gid
    if os.getuid() == 0:
        group = 12345
        os.chown(root, -1, group)
    root.chmod(root_mode)
    umask = os.umask(0o077)
    try:
        files.write_json(root / "ab" / "c" / "new.json", 1, root)
        files.append_json(root / "ab" / "new.jsonl", 1, root)
        (root / "old.json").touch()
        files.write_json(root / "old.json", 1, root)
    finally:
        os.umask(umask)
    made = {str(path.relative_to(root)): path.stat() for path in root.rglob("*")}
    assert {name: status.st_mode & 0o7777 for name, status in made.items()} == {
        "ab": folder_mode,
        "ab/c": folder_mode,
        "ab/c/new.json": file_mode,
        "ab/new.jsonl": file_mode,
        "old.json": file_mode,
    }
    assert {status.st_gid for status in made.values()} == {group}


def test_a_shared_directory_that_is_missing_is_made_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    files.write_json(tmp_path / "gone" / "ab" / "new.json", 1, tmp_path / "gone")
    assert (tmp_path / "gone").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot make .*ab"):
        files.make_directory(tmp_path / "file" / "ab", tmp_path / "file")


def test_what_killed_processes_left_is_told_from_what_they_may_still_write(tmp_path: Path) -> None:
    ours = [".kerneltune-0123456789abcdef.tmp", f"a.json.lock.break.12.{'0' * 32}"]
    others = ["kerneltune.tmp", ".kerneltune-0123.tmp", "a.json", "a.json.lock", "a.json.lock.break.mine"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    (tmp_path / ".kerneltune-ffffffffffffffff.tmp").touch()
    (tmp_path / ".kerneltune-eeeeeeeeeeeeeeee.tmp").mkdir()
    os.utime(tmp_path / ".kerneltune-eeeeeeeeeeeeeeee.tmp", (0, 0))
    assert sorted(path.name for path in files.stale_temporaries(tmp_path)) == ours
    assert list(files.stale_temporaries(tmp_path / "none")) == []


def test_a_killed_writer_leaves_what_was_there_and_at_most_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    for number in range(4):
        path.unlink(missing_ok=True)
        with start(REPLACE, path) as writer:
            while not path.exists() and writer.poll() is None:
                time.sleep(0.001)
            time.sleep(0.007 * number)
            writer.kill()
        assert len(files.read_json(path)) == 5000
    left = set(names(tmp_path)) - {"kept.json"}
    assert all(name.startswith(".kerneltune-") for name in left)


def test_no_update_is_lost_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "count.json"
    processes = [start(COUNT, path, 25) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.communicate()
    assert files.read_json(path) == 100


def test_no_update_is_lost_between_threads(tmp_path: Path) -> None:
    path = tmp_path / "count.json"

    def count() -> None:
        for _ in range(10):
            with files.locked(path):
                files.write_json(path, (files.read_json(path) or 0) + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_json(path) == 40


def test_a_reader_without_lock_never_sees_half_a_document(tmp_path: Path) -> None:
    path = tmp_path / "replaced.json"
    seen: set[int] = set()
    with start(REPLACE, path) as writer:
        try:
            while len(seen) < 40:
                assert writer.poll() is None
                if document := files.read_json(path):
                    assert len(document) == 5000
                    assert len(set(document)) == 1
                    seen.add(document[0])
        finally:
            path.with_name(f"{path.name}.stop").touch()
    assert writer.returncode == 0


def test_a_free_lock_does_not_wait(tmp_path: Path) -> None:
    waits: list[str] = []
    for _ in range(2):
        with files.locked(tmp_path / "a.json", lambda: waits.append("wait")):
            assert (tmp_path / "a.json.lock").exists()
    assert waits == []


def test_a_lock_that_stays_taken_is_an_error_after_one_call_of_on_wait(
    held: tuple[Path, Callable[[], None]],
) -> None:
    path, _ = held
    waits: list[str] = []
    with (
        pytest.raises(StoreError, match=r"document.json is locked .*0.1 s"),
        files.locked(path, lambda: waits.append("wait"), timeout_s=0.1),
    ):
        pytest.fail("entered")
    assert waits == ["wait"]


def test_a_killed_owner_releases_its_lock(held: tuple[Path, Callable[[], None]]) -> None:
    path, kill = held
    with files.locked(path, on_wait=kill, timeout_s=30):
        files.write_json(path, "mine")
    assert files.read_json(path) == "mine"


def test_a_lock_is_released_when_the_body_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ZeroDivisionError), files.locked(path):
        _ = 1 / 0
    with files.locked(path, on_wait=lambda: pytest.fail("still locked"), timeout_s=0):
        pass


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"), files.locked(tmp_path / "file" / "a.json"):
        pytest.fail("entered")
    (tmp_path / "a.json.lock").mkdir()
    with pytest.raises(StoreError, match=r"cannot lock .*a.json"), files.locked(tmp_path / "a.json"):
        pytest.fail("entered")


def test_appended_lines_survive_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    files.append_json(path, {"b": 1, "a": 2})
    with full_disk(after_bytes=100), pytest.raises(StoreError, match=r"cannot write .*journal.jsonl"):
        files.append_json(path, "x" * 1000)
    files.append_json(path, "after")
    first, torn, last = files.read_lines(path)
    assert (json.loads(first), json.loads(last)) == ({"a": 2, "b": 1}, "after")
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)


def test_a_line_without_its_newline_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"whole": 1}')
    files.append_json(path, 2)
    assert files.read_lines(path) == [b'{"whole": 1}\n', b"2\n"]


def test_corrupt_files_are_set_aside_under_free_names(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    moved = []
    for content in ("one", "two"):
        path.write_text(content)
        moved.append(files.set_aside(path))
    assert [(aside.name, aside.read_text()) for aside in moved] == [
        ("entry.json.corrupt-1", "one"),
        ("entry.json.corrupt-2", "two"),
    ]
    assert not path.exists()


def test_setting_aside_what_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot set aside .*gone.json"):
        files.set_aside(tmp_path / "gone.json")
    assert names(tmp_path) == []


def test_remove_is_content_with_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    files.remove(tmp_path / "a")
    files.remove(tmp_path / "a")
    assert names(tmp_path) == []
    with pytest.raises(StoreError, match="cannot remove"):
        files.remove(tmp_path)


def test_a_cache_directory_describes_itself(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    files.make_cache_directory(directory)
    assert names(directory) == [".gitignore", "CACHEDIR.TAG", "README.md"]
    assert (directory / ".gitignore").read_text() == "*\n"
    assert (directory / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_a_directory_that_was_there_is_left_as_it_is(tmp_path: Path) -> None:
    files.make_cache_directory(tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot make .*inside"):
        files.make_cache_directory(tmp_path / "file" / "inside" / "cache")


def test_importing_the_stores_is_light() -> None:
    script = (
        "import sys, pytest_kerneltune.files, pytest_kerneltune.cache, pytest_kerneltune.baseline\n"
        "print(sorted({'filelock', 'numpy', 'torch', 'sklearn', 'httpx'} & set(sys.modules)))"
    )
    with start(script) as process:
        assert process.communicate()[0] == "[]\n"
