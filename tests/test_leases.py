"""Leases between real processes: killed, stopped, forked, of another host, and what else may be in a marker's place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kerneltune.disk import leases
from pytest_kerneltune.disk.leases import Busy, Owner, take
from pytest_kerneltune.errors import StoreError

ROOT = Path(leases.__file__).parents[1]
LIMIT_S = 60.0

HOLD = """
import sys
from pathlib import Path
from pytest_kerneltune.disk.leases import take
lease = take(Path(sys.argv[1]), lease_s=float(sys.argv[2]))
print("held", flush=True)
for line in sys.stdin:
    if line == "release\\n":
        lease.release()
    print(lease.is_held(), flush=True)
"""
COUNT = """
import sys
from pathlib import Path
from pytest_kerneltune.disk.leases import take
path = Path(sys.argv[1])
for _ in range(10):
    with take(path):
        path.write_text(str(int(path.read_text()) + 1))
"""
FORK = """
import os, sys
from pathlib import Path
from pytest_kerneltune.disk.leases import Busy, take
path = Path(sys.argv[1])
lease = take(path, idle_s=60)
if not os.fork():
    held = lease.is_held()
    lease.renew()
    lease.release()
    try:
        take(path, timeout_s=0)
    except Busy:
        take(path.with_name("other")).release()
        os._exit(7 if held else 0)
    os._exit(8)
_, status = os.wait()
print(status, lease.is_held())
lease.release()
print(path.with_name("a.json.lock").exists())
"""
AS_NOBODY = """
import os, sys, tempfile
from pathlib import Path
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.disk.leases import Busy, take
with tempfile.TemporaryDirectory() as directory, take(Path(directory, "a")):  # imports what another may not read
    try:
        take(Path(directory, "a"), timeout_s=0)
    except Busy:
        pass
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    take(Path(sys.argv[1]), timeout_s=60, lease_s=0.2)
except StoreError as error:
    print(type(error).__name__, error)
"""
ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.disk.leases import take
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    take(Path(sys.argv[1]))
except StoreError as error:
    print(error)
"""
FOREIGN = "filelock/2\npid=4\nhost={host}\nmode={mode}\ntoken=aa\nduration={duration}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


def marker_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


class Process:
    """A script in a process of its own, which is killed at the end."""

    def __init__(self, script: str, *arguments: object, before: tuple[str, ...] = ()) -> None:
        self.popen = subprocess.Popen(
            [*before, sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().rstrip("\n")

    def say(self, word: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(word + "\n")
        self.popen.stdin.flush()

    def asked(self, word: str) -> str:
        self.say(word)
        return self.line()

    def output(self) -> str:
        return self.popen.communicate(timeout=LIMIT_S)[0]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.popen.kill()
        self.popen.communicate()


def holder(path: Path, lease_s: float = 30.0, before: tuple[str, ...] = ()) -> Process:
    process = Process(HOLD, path, lease_s, before=before)
    assert process.line() == "held"
    return process


def test_a_lease_excludes_and_says_for_whom_one_waits(path: Path) -> None:
    told: list[Owner | None] = []
    with take(path, told.append) as lease:
        assert lease.is_held()
        assert marker_of(path).exists()
        assert told == []
        with pytest.raises(Busy, match=rf"a.json is locked by process {os.getpid()} \(waited 0.3 s\)") as caught:
            take(path, told.append, timeout_s=0.3)
    assert [caught.value.owner] == told
    assert (told[0] and (told[0].pid, told[0].here)) == (os.getpid(), True)
    assert not lease.is_held()
    lease.release()
    assert list(path.parent.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "lease" in thread.name or "kerneltune" in thread.name]


def test_one_who_waits_gets_it_from_another_thread_s_release(path: Path) -> None:
    with holder(path) as process:
        first = take(path.with_name("b.json"))
        threading.Thread(target=first.release).start()
        take(path.with_name("b.json"), timeout_s=LIMIT_S).release()
        lease = take(path, lambda _: process.say("release"), timeout_s=LIMIT_S)
        assert process.line() == "False"
        assert (process.asked("is it?"), lease.is_held()) == ("False", True)
        lease.release()


@pytest.mark.parametrize("is_reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_holder_of_this_host_is_replaced_at_once(path: Path, is_reaped: bool) -> None:
    with holder(path, lease_s=1000.0) as process:
        process.popen.kill()
        if is_reaped:
            process.popen.wait()
        else:
            os.waitid(os.P_PID, process.popen.pid, os.WEXITED | os.WNOWAIT)
        take(path, timeout_s=LIMIT_S, lease_s=1000.0).release()
    assert list(path.parent.iterdir()) == []


def test_of_many_who_find_a_killed_holder_one_at_a_time_goes_on(path: Path) -> None:
    path.write_text("0")
    with holder(path) as killed:
        killed.popen.kill()  # a zombie until the end
        counters = [Process(COUNT, path) for _ in range(4)]
        assert [counter.output() for counter in counters] == [""] * 4
    assert path.read_text() == "40"


def test_a_stopped_holder_is_replaced_and_does_no_harm_when_it_goes_on(path: Path) -> None:
    with holder(path, lease_s=0.5) as process:
        process.popen.send_signal(signal.SIGSTOP)
        with take(path, timeout_s=LIMIT_S, lease_s=0.5) as lease:
            process.popen.send_signal(signal.SIGCONT)
            assert process.asked("is it?") == "False"
            assert process.asked("release") == "False"
            assert lease.is_held()


def test_a_live_holder_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep_until_it_gave_a_sign(_: float) -> None:
        nonlocal now
        last = marker_of(path).stat().st_mtime_ns
        until = time.perf_counter() + LIMIT_S
        while marker_of(path).stat().st_mtime_ns == last:
            assert time.perf_counter() < until
        now += 0.4

    with holder(path, lease_s=0.9), monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        patch.setattr(time, "sleep", sleep_until_it_gave_a_sign)
        with pytest.raises(Busy):
            take(path, timeout_s=1.6, lease_s=0.9)
    with take(path), pytest.raises(Busy):  # who waits goes by the holder's length
        take(path, timeout_s=0.7, lease_s=0.1)


def test_a_dead_holder_of_another_host_is_replaced_after_the_lease(path: Path) -> None:
    elsewhere = ("unshare", "--uts", "sh", "-c", 'hostname node-7 && exec "$@"', "sh")
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no host of another name can be made here: unshare --uts is not allowed")
    told: list[Owner | None] = []
    with holder(path, lease_s=1.0, before=elsewhere) as process:
        process.popen.kill()
        process.popen.wait()
        start = time.monotonic()
        take(path, told.append, timeout_s=LIMIT_S, lease_s=1.0).release()
    assert time.monotonic() - start > 0.6  # its last touch is at most a third of the lease back
    assert [str(owner) for owner in told] == [f"process {process.popen.pid} on node-7"]


@pytest.mark.parametrize("content", ["", "filelock/2\npid=", "nonsense\n"], ids=["empty", "torn", "garbled"])
def test_a_marker_that_names_nobody_is_removed_when_it_does_not_change(path: Path, content: str) -> None:
    marker_of(path).write_text(content)
    told: list[Owner | None] = []
    take(path, told.append, timeout_s=LIMIT_S, lease_s=0.5).release()
    assert told == [None]


def test_an_old_empty_marker_is_removed_at_once(path: Path) -> None:
    marker_of(path).touch()
    os.utime(marker_of(path), (1e9, 1e9))
    take(path, lambda _: pytest.fail("waited"), timeout_s=0).release()


def test_a_marker_of_another_length_is_removed_when_that_has_passed(path: Path) -> None:
    marker_of(path).write_text(FOREIGN.format(host="far\x1b[31m away", mode="lease", duration=0.2))
    told: list[Owner | None] = []
    take(path, told.append, timeout_s=LIMIT_S, lease_s=1000.0).release()
    assert [str(owner) for owner in told] == ["process 4 on far?[31m?away"]


def test_a_marker_of_a_kind_that_is_not_known_stays(path: Path) -> None:
    marker_of(path).write_text(FOREIGN.format(host="away", mode="later", duration=0.1))
    with pytest.raises(Busy, match="process 4 on away"):
        take(path, timeout_s=0.8, lease_s=0.1)
    assert "later" in marker_of(path).read_text()


@pytest.mark.parametrize(
    "make",
    [
        lambda marker: marker.mkdir(),
        os.mkfifo,
        lambda marker: marker.symlink_to("/dev/zero"),
        lambda marker: marker.symlink_to("nowhere"),
        lambda marker: marker.write_text("x" * 5000),
    ],
    ids=["directory", "fifo", "link", "broken-link", "large"],
)
def test_what_is_no_marker_stays_and_is_an_error_that_names_it(path: Path, make: Callable[[Path], None]) -> None:
    make(marker_of(path))
    before = marker_of(path).lstat()
    with pytest.raises(StoreError, match=r"cannot lock .*a.json: .*a.json.lock is in the way.* move it"):
        take(path, timeout_s=LIMIT_S, lease_s=0.1)
    assert marker_of(path).lstat() == before


def test_where_no_lease_can_be_made_is_an_error_that_says_why(path: Path) -> None:
    for bad, reason in (
        (path.with_name("x" * 255), "File name too long"),
        (path.with_name("nul\0"), "null"),
        (path.parent / "none" / "a.json", "there is no directory"),
        (Path("/proc/a.json"), "No such file|Permission"),
    ):
        with pytest.raises(StoreError, match=f"cannot lock .*{reason}"):
            take(bad)
    with Process(ON_A_FULL_DISK, path) as process:
        assert "a.json: File too large" in process.output()
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_where_another_user_rules_is_an_error_that_says_why() -> None:
    folder = Path("/tmp", f"kerneltune-leases-{os.getpid()}")
    folder.mkdir(mode=0o755)
    try:
        with Process(AS_NOBODY, folder / "a.json") as process:
            assert "cannot lock" in (said := process.output())
            assert "Permission denied" in said
        folder.chmod(0o1777)
        with holder(folder / "a.json", lease_s=0.2) as killed:
            killed.popen.kill()
        with Process(AS_NOBODY, folder / "a.json") as process:
            assert "nobody holds" in (said := process.output())
            assert "not permitted" in said
    finally:
        shutil.rmtree(folder)


def test_a_lease_without_progress_ends_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with take(path, idle_s=0.1) as lease:
        for _ in range(3):
            now += 0.08
            lease.renew()
            time.sleep(0.15)  # it has been looked at since
        assert lease.is_held()
        now += 0.2
        take(path, timeout_s=LIMIT_S).release()
        assert not lease.is_held()
    assert [thread.name for thread in threading.enumerate() if "kerneltune" in thread.name] == []


def test_a_forked_child_has_no_part_in_its_parent_s_lease(path: Path) -> None:
    with Process(FORK, path) as process:
        assert process.output() == "0 True\nFalse\n"


def test_a_directory_that_is_removed_meanwhile_harms_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with take(folder / "a.json", lease_s=0.3) as lease:
        with pytest.raises(StoreError, match="there is no directory"):
            take(folder / "a.json", lambda _: shutil.rmtree(folder), timeout_s=LIMIT_S)
        time.sleep(0.4)  # the thread that touches the marker finds none, twice
        assert not lease.is_held()
    lease.release()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
