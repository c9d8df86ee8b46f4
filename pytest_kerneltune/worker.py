"""Worker processes that may hang or die without harm.

A ``Worker`` is a fresh Python process in a session (and process group) of its own that serves objects: a ``Service``
names a class and its arguments, the worker builds it on first use and calls its methods. Every request has a limit;
past it the whole process group is killed, because a compiler stuck in native code hears no signal and a compiler's
own children (ptxas, cc1) must go with it. A dead worker is replaced at the next request.

Rules:
1. Nothing is raised while a request runs: ``poll`` returns a ``Reply`` that holds a value or a WorkerError.
2. The limit counts from when the worker is ready for the request; starting up and building the service have a limit
   of their own.
3. What worker and children print goes to a file and comes back as the reply's log.
4. A worker dies with its parent (Linux: parent-death signal; elsewhere at the next read of its closed pipe).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any

from pytest_kerneltune.errors import RemoteError, WorkerCrash, WorkerError, WorkerTimeout

START_LIMIT_S = 180.0
LOG_LIMIT = 20_000
_END_LIMIT_S = 30.0
_FILE_SIZE_LIMIT = 1 << 30  # a kernel that prints for ever must not fill the disk
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from pytest_kerneltune.worker import serve; serve()"


@dataclass(frozen=True, eq=False)
class Service:
    """An object to build in a worker: class "module:Class" and its picklable arguments. Compared by identity."""

    target: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reply:
    """How a request ended: ``value``, or ``error``; ``log`` is what was printed, ``seconds`` the wall time it took from
    ``began`` (monotonic s, on the clock that all processes of a machine share). ``is_begun`` is False where the request
    never ran, because what it needs (the reference, in a new process) failed with ``error``."""

    value: Any = None
    error: WorkerError | None = None
    log: str = ""
    seconds: float = 0.0
    began: float = 0.0
    is_begun: bool = True

    def unwrap(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Worker:
    """One replaceable process that serves one request at a time."""

    def __init__(self, env: Mapping[str, str] | None = None, keep: int = 1) -> None:
        """``env`` comes on top of this process's environment; ``keep`` services stay built in the worker."""
        self._env = dict(env or {})
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._log: IO[bytes] | None = None
        self._services: list[Service] = []
        self._building: Service | None = None
        self._deadline = self._started = 0.0
        self._limit = 0.0
        self._ready = False
        self._finalizer: Any = None
        self._forget_log: Callable[[], Any] = lambda: None
        self.busy = False

    @property
    def pid(self) -> int:
        """The process id; 0 where there is no process."""
        return 0 if self._process is None else self._process.pid

    @property
    def connection(self) -> Connection:
        """Readable when the running request has news; for ``multiprocessing.connection.wait``."""
        assert self._connection is not None
        return self._connection

    @property
    def seconds_left(self) -> float:
        """Until the running request's limit."""
        return max(0.0, self._deadline - time.monotonic())

    def holds(self, service: Service) -> bool:
        """Whether ``service`` is built in a living process."""
        return service in self._services and self._process is not None and self._process.poll() is None

    def start(self, imports: Sequence[str] = ()) -> None:
        """Have a process ready, or getting ready, for the next request; does not wait for it.

        A new process begins by importing the modules ``imports``, as far as they are there; of "module:function" it
        calls the function too.
        """
        if self._process is None or (not self.busy and self._process.poll() is not None):
            self._spawn(imports)

    def submit(self, service: Service, method: str, *args: Any, timeout: float) -> None:
        """Start ``service.method(*args)``; ``timeout`` is in seconds. Raises WorkerError if it can't be sent."""
        assert not self.busy, "a worker serves one request at a time"
        self.start()
        build = service not in self._services
        services = [*self._services, service][-self._keep :] if build else self._services
        kept = [id(s) for s in services]
        request = _packed((id(service), (service.target, service.args) if build else None, kept, method, args))
        self._services, self._building = services, service if build else None
        self._limit, self.busy, self._ready = timeout, True, False
        self._started = time.monotonic()
        self._deadline = self._started + START_LIMIT_S
        # A broken pipe means that it died meanwhile: poll() sees that and says how.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(request)

    def allow(self, seconds: float) -> None:
        """Change the running request's limit, which counts from when it started."""
        self._limit = seconds
        if self._ready:
            self._deadline = self._started + seconds

    def poll(self) -> Reply | None:
        """The running request's reply, or None while it runs; kills the worker where its limit is past."""
        try:
            while self.connection.poll():
                message = _unpacked(self.connection.recv_bytes())
                if message[0] == "ready":
                    self._building, self._ready = None, True
                    self._started = time.monotonic()
                    self._deadline = self._started + self._limit
                    continue
                return self._finish(message)
        except (EOFError, OSError):
            return self._died()
        if time.monotonic() < self._deadline:
            return None
        waited = time.monotonic() - self._started
        self.kill()
        log = self._take_log()
        return self._reply(error=WorkerTimeout(f"no answer within {waited:.3g} s; its process group was killed", log))

    def call(self, service: Service, method: str, *args: Any, timeout: float) -> Reply:
        """``submit`` and wait for the reply."""
        try:
            self.submit(service, method, *args, timeout=timeout)
            while (reply := self.poll()) is None:
                wait([self.connection], self.seconds_left)
        except BaseException:  # Ctrl-C, or an alarm of somebody's: nobody will ask for this reply
            if self.busy:
                self.kill()
            raise
        return reply

    def kill(self) -> None:
        """Kill the process group now, with what it is doing; the next request starts a new process."""
        if self._finalizer is not None:
            self._finalizer()
        # One that a driver keeps for ever is not waited for.
        self._process, self._services, self.busy = None, [], False

    def close(self) -> None:
        """Kill, and forget what was printed."""
        self.kill()
        self._forget_log()

    def _spawn(self, imports: Sequence[str]) -> None:
        self.close()
        self._log = tempfile.TemporaryFile(prefix="kerneltune-")  # noqa: SIM115 - lives as long as the worker
        # Appending, whatever was cut off the file meanwhile (the mode "a" does not reach an unnamed file's descriptor).
        fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
        self._forget_log = weakref.finalize(self, self._log.close)
        ours, theirs = Pipe()
        path = [str(p) for p in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                # -P: a json.py in the working directory is none of ours.
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), *map(json.dumps, (path, imports))],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **self._env},
            )
        self._connection = ours
        self._finalizer = weakref.finalize(self, end_group, self._process, os.getpid(), ours)

    def _finish(self, message: tuple[Any, ...]) -> Reply:
        log = self._take_log()
        if message[0] == "ok":
            _, value, *span = message
            return self._reply(value=value, log=log, span=span)
        _, kind, text, trace, *span = message
        if self._building is not None:  # it could not be built: the next request for it tries again
            self._services.remove(self._building)
        return self._reply(error=RemoteError(kind, text, f"{log}\n{trace}".strip()), log=log, span=span)

    def _died(self) -> Reply:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        code = self._process.poll()
        self.kill()
        log = self._take_log()
        if code is not None and code < 0:
            how = f"killed by {_signal_name(-code)}"
        else:
            how = f"exited with status {code}" if code is not None else "closed its pipe"
        return self._reply(error=WorkerCrash(f"the worker process was lost: {how}", log), log=log)

    def _reply(
        self, value: Any = None, error: WorkerError | None = None, log: str = "", span: Sequence[float] = ()
    ) -> Reply:
        """``span`` is when the worker began and ended, by its own account."""
        self.busy = False
        began, ended = span or (self._started, time.monotonic())
        return Reply(value, error, log or (error.log if error else ""), ended - began, began)

    def _take_log(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        head = self._log.read(LOG_LIMIT)
        size = self._log.seek(0, os.SEEK_END)
        self._log.truncate(0)
        text = head.decode(errors="replace").strip()
        return text if size <= LOG_LIMIT else f"{text}\n... ({size - LOG_LIMIT} more bytes)"


def _packed(request: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(request)
    except Exception as error:  # an object's own reduction may raise anything
        raise WorkerError(f"a request cannot be sent to a worker process: {type(error).__name__}: {error}") from error


def _unpacked(data: bytes) -> tuple[Any, ...]:
    try:
        message: tuple[Any, ...] = pickle.loads(data)
    except Exception as error:  # of a class, say, that only the worker can import
        message = ("error", type(error).__name__, f"the result cannot be read: {error}", "")
    return message


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def end_group(process: subprocess.Popen[bytes], owner: int, *opened: Connection | IO[bytes]) -> None:
    """Kill the process group that ``process`` leads, and close what was ``opened`` for it.

    Does nothing but in the process ``owner``: a fork of ours ends, or collects its garbage, too.
    """
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may keep a process that is being killed
        process.wait(_END_LIMIT_S)
    for each in opened:
        each.close()


def wait_any(workers: Sequence[Worker], timeout: float) -> None:
    """Return when a busy worker of ``workers`` has news or is past its limit, at the latest after ``timeout`` s."""
    busy = [w for w in workers if w.busy]
    if busy:
        wait([w.connection for w in busy], min([timeout, *(w.seconds_left for w in busy)]))


def serve() -> None:
    """The worker's main loop: build services, answer requests, until the parent closes the pipe."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # or a child that outlives this process would hide its end
    connection = Connection(descriptor)
    _prepare_process()
    for name in json.loads(sys.argv[3]):
        with contextlib.suppress(Exception):  # who needs it will say why it cannot be imported
            module, _, function = name.partition(":")
            imported = import_module(module)
            if function:
                getattr(imported, function)()
    services: dict[int, Any] = {}
    while True:
        try:
            token, build, kept, method, args = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        began = time.monotonic()
        try:
            for stale in [t for t in services if t not in kept]:
                del services[stale]
            if build is not None or token not in services:
                target, target_args = build
                module, name = target.split(":")
                services[token] = getattr(import_module(module), name)(*target_args)
            connection.send_bytes(pickle.dumps(("ready",)))
            began = time.monotonic()
            answer: tuple[Any, ...] = ("ok", getattr(services[token], method)(*args))
        except BaseException as error:  # whatever a kernel raises (SystemExit too) is this request's answer
            answer = ("error", type(error).__name__, str(error), traceback.format_exc(limit=-8))
        connection.send_bytes(_dumps(answer, (began, time.monotonic())))


def _dumps(answer: tuple[Any, ...], span: tuple[float, float]) -> bytes:
    try:
        return pickle.dumps((*answer, *span))
    except Exception as error:  # an unpicklable result is the request's failure, not the worker's
        return pickle.dumps(("error", type(error).__name__, f"the result cannot be sent: {error}", "", *span))


def _prepare_process() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = _FILE_SIZE_LIMIT if hard == resource.RLIM_INFINITY else min(_FILE_SIZE_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    faulthandler.enable()
