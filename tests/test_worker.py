"""Workers that hang, die, print and lie; every process, signal and descriptor here is a real one."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.errors import RemoteError, WorkerCrash, WorkerError, WorkerTimeout
from pytest_kerneltune.worker import LOG_LIMIT, Reply, Service, Worker, wait_any

AMPLE_S = 60.0
ENDLESS_S = 600


class Unsendable:
    def __reduce__(self) -> Any:
        raise RuntimeError("it stays here")


class Unreadable:
    """Can be sent, but read by nobody else."""

    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(),)


def _only_in(pid: int) -> None:
    if os.getpid() != pid:
        raise LookupError(f"no such thing outside of {pid}")


class Box:
    """What the workers serve; ``built`` counts how often this process made one."""

    built = 0

    def __init__(self, content: Any = None, failing: str = "") -> None:
        if failing and not Path(failing).exists():
            raise LookupError(f"{failing} is missing")
        self.content = content
        Box.built += 1

    def get(self) -> Any:
        return self.content

    def echo(self, value: Any) -> Any:
        return value

    def count(self) -> int:
        return Box.built

    def pid(self) -> int:
        return os.getpid()

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def say(self, text: str, times: int = 1) -> None:
        for _ in range(times):
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        os.system(f"echo from a child: {text[:20]}")

    def say_for_ever(self) -> None:
        while True:
            os.write(1, b"again and again\n" * 512)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "awake"

    def spin(self) -> None:
        while True:
            pass

    def hang_with_children(self, note: str) -> None:
        children = [subprocess.Popen(["sleep", str(ENDLESS_S)]) for _ in range(2)]
        grandchild = subprocess.Popen(["sh", "-c", f"sleep {ENDLESS_S} & echo $! > {note}.part; wait"])
        while not Path(f"{note}.part").exists() or not Path(f"{note}.part").read_text().strip():
            time.sleep(0.01)
        pids = [os.getpid(), *(c.pid for c in children), grandchild.pid, int(Path(f"{note}.part").read_text())]
        Path(f"{note}.part").write_text(" ".join(map(str, pids)))
        Path(f"{note}.part").rename(note)
        time.sleep(ENDLESS_S)

    def die_of(self, number: int) -> None:
        signal.signal(signal.Signals(number), signal.SIG_DFL) if number < signal.SIGRTMIN else None
        os.kill(os.getpid(), number)
        time.sleep(ENDLESS_S)

    def write_to_null(self) -> None:
        ctypes.memset(0, 1, 8)

    def leave(self, status: int) -> None:
        os._exit(status)

    def leave_a_child_and_die(self) -> None:
        os.system(f"sleep {ENDLESS_S} &")
        os._exit(7)

    def raise_(self, kind: str) -> None:
        raise {"KeyError": KeyError("k"), "SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt()}[kind]

    def unsendable(self) -> Any:
        return Unsendable()

    def unreadable(self) -> Any:
        return Unreadable()

    def thread_lock(self) -> Any:
        return threading.Lock()

    def core_limit(self) -> int:
        return resource.getrlimit(resource.RLIMIT_CORE)[0]


class LateBox(Box):
    """Is built when a file is there."""

    def __init__(self, file: str) -> None:
        while not Path(file).exists():
            time.sleep(0.01)
        super().__init__("built at last")


BOX, LATE = f"{__name__}:Box", f"{__name__}:LateBox"


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def box() -> Service:
    return Service(BOX, ("inside",))


def call(worker: Worker, service: Service, method: str, *args: Any, timeout: float = AMPLE_S) -> Reply:
    return worker.call(service, method, *args, timeout=timeout)


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process ends (a zombie that its parent, not us, has yet to reap counts as ended)."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def children() -> list[int]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in listed.split()]


def descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} -> {entry.readlink()}")
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def test_a_service_is_built_once_and_answers(worker: Worker, box: Service) -> None:
    replies = [call(worker, box, "get"), call(worker, box, "count"), call(worker, box, "pid")]
    assert [r.error for r in replies] == [None] * 3
    assert [r.value for r in replies[:2]] == ["inside", 1]
    assert replies[2].unwrap() not in (os.getpid(), 0)
    assert all(0 <= r.seconds < AMPLE_S for r in replies)


def test_only_the_last_services_stay_built(box: Service) -> None:
    other, third = Service(BOX, ("other",)), Service(BOX, ("third",))
    for keep, builds in ((1, 4), (2, 3)):
        worker = Worker(keep=keep)
        answers = [call(worker, s, "get").unwrap() for s in (box, other, other, third, other)]
        assert answers == ["inside", "other", "other", "third", "other"]
        assert call(worker, other, "count").unwrap() == builds
        worker.close()


def test_the_environment_comes_on_top_of_ours(box: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_INHERITED", "1")
    worker = Worker({"KT_OWN": "2"})
    assert [call(worker, box, "variable", n).value for n in ("KT_INHERITED", "KT_OWN")] == ["1", "2"]
    worker.close()


def test_modules_of_the_working_directory_do_not_shadow_the_standard_library(
    worker: Worker, box: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    assert call(worker, box, "get").value == "inside"


def test_a_path_object_on_sys_path_is_no_obstacle(
    worker: Worker, box: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert call(worker, box, "get").value == "inside"


@pytest.mark.parametrize("kind", ["KeyError", "SystemExit", "KeyboardInterrupt"])
def test_what_a_request_raises_is_its_answer_and_the_worker_lives_on(worker: Worker, box: Service, kind: str) -> None:
    pid = call(worker, box, "pid").unwrap()
    error = call(worker, box, "raise_", kind).error
    assert isinstance(error, RemoteError)
    assert error.kind == kind
    assert "raise_" in error.log
    assert call(worker, box, "pid").unwrap() == pid


def test_a_service_that_cannot_be_built_says_why_each_time_until_it_can(worker: Worker, tmp_path: Path) -> None:
    service = Service(BOX, ("late", str(tmp_path / "file")))
    for _ in range(2):
        error = call(worker, service, "get").error
        assert isinstance(error, RemoteError)
        assert error.kind == "LookupError"
        assert "is missing" in str(error)
    (tmp_path / "file").touch()
    assert call(worker, service, "get").unwrap() == "late"


@pytest.mark.parametrize("target", ["no_such_module_at_all:Box", f"{__name__}:NoSuchClass"])
def test_a_target_that_does_not_exist_is_the_request_s_error(worker: Worker, box: Service, target: str) -> None:
    assert isinstance(call(worker, Service(target), "get").error, RemoteError)
    assert call(worker, box, "get").value == "inside"


def test_a_result_that_cannot_be_sent_or_read_is_an_error_of_the_request(worker: Worker, box: Service) -> None:
    pid = call(worker, box, "pid").unwrap()
    for method in ("unsendable", "thread_lock", "unreadable"):
        error = call(worker, box, method).error
        assert isinstance(error, RemoteError), method
        assert "the result cannot be" in str(error)
    assert call(worker, box, "pid").unwrap() == pid


def test_a_request_that_cannot_be_sent_leaves_the_worker_free(worker: Worker, box: Service) -> None:
    assert call(worker, box, "get").value == "inside"
    for service, args in ((box, (Unsendable(),)), (Service(BOX, (Unsendable(),)), ())):
        with pytest.raises(WorkerError, match="it stays here"):
            worker.submit(service, "echo", *args, timeout=AMPLE_S)
        assert not worker.busy
    assert call(worker, box, "count").unwrap() == 1


@pytest.mark.parametrize(
    ("method", "args", "how"),
    [
        ("write_to_null", (), "SIGSEGV"),
        ("die_of", (int(signal.SIGABRT),), "SIGABRT"),
        ("die_of", (int(signal.SIGFPE),), "SIGFPE"),
        ("die_of", (int(signal.SIGRTMIN) + 3,), f"signal {int(signal.SIGRTMIN) + 3}"),
        ("leave", (3,), "status 3"),
        ("leave", (0,), "status 0"),
        ("leave_a_child_and_die", (), "status 7"),
    ],
)
def test_a_death_is_reported_as_what_it_was_and_replaced(
    worker: Worker, box: Service, method: str, args: tuple[Any, ...], how: str
) -> None:
    first = call(worker, box, "pid").unwrap()
    error = call(worker, box, method, *args).error
    assert isinstance(error, WorkerCrash)
    assert how in str(error)
    assert gone(first)
    assert call(worker, box, "pid").unwrap() != first
    assert call(worker, box, "get").value == "inside"


def test_a_worker_that_died_between_requests_is_replaced(worker: Worker, box: Service) -> None:
    pid = call(worker, box, "pid").unwrap()
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert call(worker, box, "get").value == "inside"


def test_a_process_that_cannot_start_is_a_crash_with_its_message(box: Service) -> None:
    worker = Worker({"PYTHONHOME": "/nonexistent"})
    reply = call(worker, box, "get")
    assert isinstance(reply.error, WorkerCrash)
    assert "encodings" in reply.log
    worker.close()


@pytest.mark.parametrize("method", ["sleep", "spin"])
def test_past_its_limit_a_request_is_killed(worker: Worker, box: Service, method: str) -> None:
    pid = call(worker, box, "pid").unwrap()
    reply = call(worker, box, method, *([ENDLESS_S] if method == "sleep" else []), timeout=0.2)
    assert isinstance(reply.error, WorkerTimeout)
    assert 0.2 <= reply.seconds < 20
    assert gone(pid)
    assert call(worker, box, "get").value == "inside"


def test_the_limit_starts_when_the_service_is_ready(
    worker: Worker, tmp_path: Path, advance: Callable[[float], None]
) -> None:
    worker.submit(Service(LATE, (str(tmp_path / "file"),)), "get", timeout=AMPLE_S)
    advance(1.5 * AMPLE_S)
    assert worker.poll() is None
    (tmp_path / "file").touch()
    while (reply := worker.poll()) is None:
        wait_any([worker], AMPLE_S)
    assert reply.value == "built at last"


def test_the_whole_process_group_goes_with_a_timeout(worker: Worker, box: Service, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    worker.submit(box, "hang_with_children", str(note), timeout=AMPLE_S)
    until = time.monotonic() + AMPLE_S
    while not note.exists() and time.monotonic() < until:
        assert worker.poll() is None
        time.sleep(0.01)
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 5
    worker.kill()
    assert all(gone(pid) for pid in pids)
    assert not worker.busy


def test_what_is_printed_comes_back_with_the_request_that_printed_it(worker: Worker, box: Service) -> None:
    first = call(worker, box, "say", "hello there")
    assert first.log == "hello there\nfrom a child: hello there"
    assert call(worker, box, "get").log == ""
    assert call(worker, box, "say", "second").log.startswith("second")


def test_a_crash_keeps_what_was_printed_before(worker: Worker, box: Service) -> None:
    assert call(worker, box, "get").value == "inside"
    assert "Segmentation fault" in call(worker, box, "write_to_null").log


def test_long_logs_are_cut_with_a_note(worker: Worker, box: Service) -> None:
    log = call(worker, box, "say", "x" * 99, 2 * LOG_LIMIT // 100).log
    assert LOG_LIMIT <= len(log) < LOG_LIMIT + 100
    assert "more bytes" in log


def test_endless_printing_ends_with_the_limit(worker: Worker, box: Service) -> None:
    reply = call(worker, box, "say_for_ever", timeout=0.2)
    assert isinstance(reply.error, WorkerTimeout)
    assert reply.log.startswith("again and again")
    assert len(reply.log) < LOG_LIMIT + 100


def test_large_requests_and_replies_pass(worker: Worker, box: Service) -> None:
    megabytes = os.urandom(1 << 20) * 8
    assert call(worker, box, "echo", megabytes).value == megabytes


def test_workers_run_side_by_side(box: Service) -> None:
    workers = [Worker(), Worker()]
    for worker in workers:
        worker.submit(box, "sleep", 0.2, timeout=AMPLE_S)
    replies: dict[int, Reply] = {}
    while len(replies) < 2:
        wait_any([w for i, w in enumerate(workers) if i not in replies], AMPLE_S)
        for i, worker in enumerate(workers):
            if i not in replies and (reply := worker.poll()) is not None:
                replies[i] = reply
    assert [replies[i].value for i in (0, 1)] == ["awake", "awake"]
    for worker in workers:
        worker.close()


def test_waiting_returns_at_the_limit_of_a_busy_worker_and_at_once_for_idle_ones(worker: Worker, box: Service) -> None:
    wait_any([worker], AMPLE_S)
    assert call(worker, box, "get").value == "inside"
    worker.submit(box, "sleep", ENDLESS_S, timeout=0.3)
    until = time.monotonic() + AMPLE_S
    while (reply := worker.poll()) is None:
        assert time.monotonic() < until
        wait_any([worker], AMPLE_S)
    assert isinstance(reply.error, WorkerTimeout)


def test_an_interrupt_while_waiting_leaves_no_busy_worker(
    worker: Worker, box: Service, monkeypatch: pytest.MonkeyPatch, interrupt_when: Callable[..., None]
) -> None:
    pid = call(worker, box, "pid").unwrap()
    waits = threading.Event()

    def waiting(*arguments: Any) -> Any:
        waits.set()
        return wait(*arguments)

    monkeypatch.setattr("pytest_kerneltune.worker.wait", waiting)
    interrupt_when(waits.is_set)
    with pytest.raises(KeyboardInterrupt):
        call(worker, box, "sleep", ENDLESS_S)
    assert not worker.busy
    assert gone(pid)
    assert call(worker, box, "get").value == "inside"


def test_an_interrupt_right_after_asking_leaves_no_busy_worker(
    worker: Worker, box: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = worker.submit

    def interrupted(*arguments: Any, **options: Any) -> None:
        submit(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(worker, box, "sleep", ENDLESS_S)
    monkeypatch.undo()
    assert not worker.busy
    assert call(worker, box, "get").value == "inside"


def test_nothing_is_left_behind(box: Service) -> None:
    """No descriptor, no zombie, no process: whatever happened to the worker before it was closed."""
    Worker().close()
    before_open, before_children = descriptors(), set(children())
    for _ in range(2):
        worker = Worker()
        pids = [call(worker, box, "pid").unwrap()]
        assert isinstance(call(worker, box, "leave", 3).error, WorkerCrash)
        pids.append(call(worker, box, "pid").unwrap())
        assert isinstance(call(worker, box, "spin", timeout=0.1).error, WorkerTimeout)
        pids.append(call(worker, box, "pid").unwrap())
        worker.close()
        worker.close()
        assert all(gone(pid) for pid in pids)
    assert descriptors() == before_open
    assert set(children()) <= before_children


def test_a_forgotten_worker_is_ended(box: Service) -> None:
    worker = Worker()
    before = descriptors()
    pid = call(worker, box, "pid").unwrap()
    del worker
    assert gone(pid)
    assert descriptors() == before


PARENT = """
import sys, time
from pytest_kerneltune.worker import Service, Worker
workers = [Worker(), Worker()]
box = Service({box!r}, ("inside",))
print(*(w.call(box, "pid", timeout=60).unwrap() for w in workers), flush=True)
workers[0].submit(box, "spin", timeout=600)
{then}
"""


def parent(then: str) -> subprocess.Popen[str]:
    code = PARENT.format(box=BOX, then=then)
    paths = os.pathsep.join(map(str, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends at its next read")
def test_a_killed_parent_takes_its_workers_along_busy_or_idle() -> None:
    with parent("time.sleep(600)") as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    assert all(gone(pid) for pid in pids)


def test_a_parent_that_ends_in_an_error_ends_its_workers() -> None:
    with parent("raise SystemExit(5)") as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert process.wait(30) == 5
    assert all(gone(pid) for pid in pids)


FORK = """
import os, sys
from pytest_kerneltune.worker import Service, Worker
worker = Worker()
box = Service({box!r}, ("inside",))
before = worker.call(box, "pid", timeout=60).unwrap()
if os.fork() == 0:
    sys.exit(0)
os.wait()
print(before == worker.call(box, "pid", timeout=60).unwrap())
"""


def test_a_fork_of_ours_that_ends_does_not_end_our_workers() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    command = [sys.executable, "-c", FORK.format(box=BOX)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=AMPLE_S, check=True)
    assert done.stdout.split() == ["True"]


def test_core_dumps_are_off(worker: Worker, box: Service) -> None:
    assert call(worker, box, "core_limit").value == 0
