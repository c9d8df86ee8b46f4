"""The lock of a device, between real processes and users."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.locking import SHARED_FOLDER, device_lock, try_lock

UUID = "GPU-aaaaaaaa-0000-1111-2222-333344445555"
LIMIT_S = 30.0

HOLD = """
import sys, time
from pathlib import Path
from pytest_kerneltune.locking import device_lock
with device_lock(sys.argv[1], Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""

TURNS = """
import sys, time
from pathlib import Path
from pytest_kerneltune.locking import device_lock
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    with device_lock(sys.argv[1], Path(sys.argv[2])):
        start = time.monotonic()
        time.sleep(0.02)
        print(start, time.monotonic(), flush=True)
"""

FAMILY = """
import os, subprocess, sys
from pathlib import Path
from pytest_kerneltune.locking import try_lock
release = try_lock(sys.argv[1], Path(sys.argv[2]))
waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
child = subprocess.Popen(waits, stdin=subprocess.PIPE, close_fds=False)
end, start = os.pipe()
if not os.fork():
    os.close(start)
    os.read(end, 1)  # until its parent ends
    os._exit(0)
release()
print("free" if try_lock(sys.argv[1], Path(sys.argv[2])) else "taken", flush=True)
"""

AS_NOBODY = """
import os, sys, time
from pathlib import Path
from pytest_kerneltune.locking import try_lock
if sys.argv[3]:
    time.time = lambda: Path(sys.argv[2]).stat().st_ctime + float(sys.argv[3])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print("free" if try_lock(sys.argv[1], Path(sys.argv[2])) else "taken")
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts Python code in a process of its own; its arguments are a device and the folder."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, device: str = UUID) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, device, str(folder)]
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def taken(folder: Path, device: str = UUID) -> Callable[[], None]:
    """The lock, as soon as it is free."""
    give_up = time.monotonic() + LIMIT_S
    while (release := try_lock(device, folder)) is None:
        assert time.monotonic() < give_up, "the lock stays taken"
        time.sleep(0.01)
    return release


def test_a_free_lock_is_taken_and_given_back(folder: Path) -> None:
    release = try_lock(UUID, folder)
    assert release is not None
    assert try_lock(UUID, folder) is None
    release()
    release()
    with device_lock(UUID, folder):
        assert try_lock(UUID, folder) is None
    taken(folder)()


def test_a_lock_is_given_back_when_the_body_raises(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), device_lock(UUID, folder):
        _ = 1 / 0
    taken(folder)()


def test_every_device_has_its_own_lock(folder: Path) -> None:
    names = (UUID, UUID.replace("GPU", "MIG"), "NVIDIA H200", f"MIG-{UUID}/1/0", f"MIG-{UUID}/2/0", "")
    releases = [taken(folder, name) for name in names]
    assert len(list(folder.iterdir())) == len(names)
    assert [path for path in folder.iterdir() if path.name != path.name.strip(".-")] == []
    assert [try_lock(name, folder) for name in names] == [None] * len(names)
    for release in releases:
        release()


def test_processes_never_hold_a_device_at_once(start: Start) -> None:
    processes = [start(TURNS) for _ in range(3)]
    for process in processes:
        assert line(process) == "ready"
    spans = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        spans += [tuple(map(float, text.split())) for text in process.communicate(timeout=LIMIT_S)[0].splitlines()]
    spans.sort()
    assert len(spans) == 15
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_a_dead_holder_frees_the_device(folder: Path, start: Start) -> None:
    holder = start(HOLD)
    assert line(holder) == "held"
    assert try_lock(UUID, folder) is None
    holder.kill()
    taken(folder)()


def test_who_is_stopped_keeps_no_device_from_the_others(folder: Path, start: Start) -> None:
    holder = start(HOLD)
    assert line(holder) == "held"
    holder.send_signal(signal.SIGSTOP)
    heir = taken(folder)
    assert try_lock(UUID, folder) is None, "of the others one at a time"
    heir()
    holder.send_signal(signal.SIGCONT)
    give_up = time.monotonic() + LIMIT_S
    while (release := try_lock(UUID, folder)) is not None:
        release()
        assert time.monotonic() < give_up, "who goes on does not have the device"


def test_processes_that_the_holder_started_do_not_keep_the_lock(start: Start) -> None:
    assert line(start(FAMILY)) == "free"


def test_a_lock_file_that_was_tidied_up_is_made_anew(folder: Path) -> None:
    held = taken(folder)
    (path,) = folder.iterdir()
    path.unlink()
    release = taken(folder)
    assert try_lock(UUID, folder) is None
    release()
    held()


# Other users


def test_everybody_may_use_the_folder_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        taken(folder)()
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert path.stat().st_size == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_users_exclude_each_other() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place, "locks")
        release = taken(folder)
        assert as_nobody(UUID, folder) == "taken"
        release()
        assert as_nobody(UUID, folder) == as_nobody("other", folder) == "free"
        taken(folder, "other")()
        assert {path.stat().st_uid for path in folder.iterdir()} == {0, 65534}


@pytest.mark.skipif(os.getuid() != 0, reason="root may use every folder")
def test_a_folder_that_another_user_is_just_making_is_not_an_error_yet() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place, "locks")
        folder.mkdir(0o755)
        assert as_nobody(UUID, folder, "0.5") == "taken"
        with pytest.raises(subprocess.CalledProcessError) as caught:
            as_nobody(UUID, folder, "1.5")
        assert "StoreError: cannot lock" in caught.value.stderr


def as_nobody(device: str, folder: Path, later_s: str = "") -> str:
    """What another user finds the lock to be, so many seconds after the folder was made where that is given."""
    command = [sys.executable, "-c", AS_NOBODY, device, str(folder), later_s]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_no_symbolic_link_is_followed(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("content")
    elsewhere.chmod(0o600)
    taken(folder)()
    (path,) = folder.iterdir()
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(StoreError, match=rf"^cannot lock {path}: "):
        try_lock(UUID, folder)
    path.unlink()
    path.symlink_to(tmp_path / "new")
    with pytest.raises(StoreError, match="cannot lock"):
        try_lock(UUID, folder)
    assert (elsewhere.read_text(), stat.S_IMODE(elsewhere.stat().st_mode)) == ("content", 0o600)
    assert not (tmp_path / "new").exists()

    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    with pytest.raises(StoreError, match="cannot lock"):
        try_lock("other", linked)
    assert list(folder.iterdir()) == [path]


def test_what_is_no_lock_file_is_refused_without_waiting_for_it(folder: Path) -> None:
    taken(folder)()
    (path,) = folder.iterdir()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="no regular file"):
        try_lock(UUID, folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="directory"):
        try_lock(UUID, folder)


def test_what_stands_in_the_file_is_kept(folder: Path) -> None:
    taken(folder)()
    (path,) = folder.iterdir()
    path.write_text("content")
    taken(folder)()
    assert path.read_text() == "content"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"^cannot lock .*file.*lock: Not a directory$"):
        try_lock(UUID, tmp_path / "file")
    with pytest.raises(StoreError, match="Not a directory"):
        try_lock(UUID, tmp_path / "file" / "locks")


def test_the_folder_of_all_users_does_not_follow_tmpdir(tmp_path: Path) -> None:
    code = "import sys; from pytest_kerneltune.locking import try_lock; assert try_lock(sys.argv[1])"
    device = f"test {os.getpid()} {tmp_path.name}"
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, device], env=environ, check=True)
    made = [path for path in SHARED_FOLDER.iterdir() if path.name.startswith(f"test-{os.getpid()}-")]
    for path in made:
        path.unlink()
    assert len(made) == 1
    assert list(tmp_path.iterdir()) == []
