"""The process that exports kernels of an older version: pytest in its checkout, asked for one kernel after the other.

The test files, conftest files and modules of the repository are the checkout's (``redirect.py``), this package is
today's. A test that gives the kernel is set up as pytest does it; where its fixtures hand the kernel over, it is
exported, and the test is skipped and torn down. The test's own body runs only where the kernel is asked for in there.

pytest collects once in a session: there is one for each test file, until a kernel of another file is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kerneltune.against import COLLECTED, STARTED, Absent, Counterpart, Request, Start
from pytest_kerneltune.errors import KernelTuneError
from pytest_kerneltune.exporting import Exporter
from pytest_kerneltune.identity import identity
from pytest_kerneltune.options import RUN_PLUGIN
from pytest_kerneltune.packing import travel_by_value
from pytest_kerneltune.redirect import Redirect
from pytest_kerneltune.source.introspection import module_file
from pytest_kerneltune.workload import Workload

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_REASON_LIMIT = 400
_QUIET = ("--no-header", "--no-summary")
_ENOUGH = "pytest-kerneltune has what it wants of this test"


def main() -> None:
    """Serve the process that started this one, through the pipe whose number is the first argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            return
    connection = Connection(descriptor)
    start: Start = pickle.loads(connection.recv_bytes())
    sys.path[:] = start.path
    redirect = Redirect(start.places)
    redirect.put_first()
    travel_by_value(start.places.checkout)
    requests, status = _Requests(connection, start.file), 0
    while file := requests.next_file():
        status = pytest.main(_arguments(start, file), plugins=[_Host(start, requests, redirect, file)])
    sys.exit(status)


def _arguments(start: Start, file: str) -> list[str]:
    """pytest's: nothing of the user's that reports, selects, distributes or repeats."""
    given, root = start.options, start.settings.root
    plugins = [name for name in given.get("plugins", ()) if name != "no:terminal"]  # as xdist's workers have it
    # The user's addopts ask for reports and workers; what they load and set came with the options.
    overrides = [*given.get("overrides", ()), "addopts=", "autotune="]
    if "no:cacheprovider" not in plugins:
        overrides.append(f"cache_dir={root / '.pytest_cache'}")
    warnings = [*given.get("warnings", ()), "ignore::pytest.PytestAssertRewriteWarning"]  # we are loaded before pytest
    several = (("-p", plugins), ("-o", overrides), ("-W", warnings), ("-c", filter(None, [given.get("ini")])))
    return [
        *(f"--{name}={given[name]}" for name in ("import-mode", "assert") if name in given),
        *(part for flag, values in several for value in values for part in (flag, value)),
        *(f"--rootdir={root}", f"--basetemp={start.scratch}", "--capture=no", "--color=no", "-qq", *_QUIET),
        str(root / file),
    ]


class _Requests:
    """The kernels that are asked for, in order, and the answers."""

    def __init__(self, connection: Connection, file: str) -> None:
        """``file`` is the test file to begin with."""
        self._connection, self._next = connection, file
        self._pending: Request | None = None

    def next_file(self) -> str:
        """The test file to turn to now; "" where there is none."""
        file, self._next = self._next, ""
        return file

    def take(self, file: str) -> Request | None:
        """The next request for a kernel of this test file; None where it is for another, or there will be none."""
        request, self._pending = self._pending or self._received(), None
        if request is not None and request.home != file:
            self._pending, self._next = request, request.home
            return None
        return request

    def answer(self, message: object) -> None:
        self._connection.send_bytes(pickle.dumps(message))

    def _received(self) -> Request | None:
        try:
            request: Request = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return request


class _Host:
    """The plugin that answers instead of running tests, for the kernels of one test file."""

    def __init__(self, start: Start, requests: _Requests, redirect: Redirect, file: str) -> None:
        self._start, self._requests, self._redirect, self._file = start, requests, redirect, file
        self._exporter = Exporter(start.settings)
        self._parser: pytest.Parser | None = None
        self._options: set[str] = set()
        self._own_options: set[str] = set()
        self._wanted: Request | None = None
        self._found: Counterpart | None = None
        self._is_guess = False  # the test that runs is not the one that has the kernel today
        self._unloaded: list[str] = []
        self._failures: list[str] = []

    # Starting

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        self._parser = parser

    def pytest_plugin_registered(self, plugin: object) -> None:
        """Note which options the checkout's conftest files and plugins add."""
        if self._parser is None:
            return
        with contextlib.suppress(pytest.UsageError):
            known = set(vars(self._parser.parse_known_args([])))
            if self._is_of_checkout(plugin):
                self._own_options |= known - self._options
            self._options = known

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Give them the values that they have today."""
        self._redirect.put_first()  # pytest has put its own finder there
        values = self._start.options.get("values", {})
        for name in self._own_options & set(values):
            setattr(config.option, name, values[name])

    def _is_of_checkout(self, plugin: Any) -> bool:
        file = module_file(plugin) if hasattr(plugin, "__file__") else ""
        return bool(file) and Path(file).is_relative_to(self._start.places.checkout)

    # Serving

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """From here on kernels are this plugin's."""
        manager = session.config.pluginmanager
        if manager.has_plugin(RUN_PLUGIN):
            manager.unregister(name=RUN_PLUGIN)
        manager.register(_Run(self._exporter, self), RUN_PLUGIN)
        self._requests.answer(STARTED)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer until a kernel of another file is asked for."""
        self._requests.answer(COLLECTED)
        while (request := self._requests.take(self._file)) is not None:
            self._requests.answer(self._answer(session.items, request))
            _free_memory()
        return True

    def _answer(self, items: Sequence[pytest.Item], request: Request) -> Counterpart | Absent:
        self._wanted, self._found, self._failures = request, None, list(self._unloaded)
        for item in _candidates(items, request):
            self._is_guess = item.nodeid != request.test
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if self._found is not None:
                break
        found, self._wanted, self._found = self._found, None, None
        if found is not None:
            return found
        if self._failures:
            return Absent(f"{request.name} cannot be loaded: {self._failures[0]}", broken=True)
        return Absent(f"no test of {request.home} gave {request.name}", broken=False)

    def export(self, workload: Workload) -> None:
        """Export the workload if it is wanted, and go no further with the test."""
        wanted = self._wanted
        if wanted is None or (workload.file, workload.name) != (wanted.file, wanted.name):
            return
        try:
            found = self._exporter.export(workload, wanted.configs)
            self._found = replace(found, remarks=self._redirect.remarks(found.kernel.data))
        except KernelTuneError as error:
            self._failures.append(str(error))
        pytest.skip(_ENOUGH)

    # Within a test

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: Any
    ) -> Generator[None, object | None, object | None]:
        """Skip tests that have the kernel at other parameters, before it is made."""
        wanted = self._wanted
        if wanted is not None and self._is_guess and fixturedef.argname == wanted.fixture:
            own = identity(request, fixturedef.func)
            if own != (wanted.file, wanted.name):
                pytest.skip(_ENOUGH)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if self._wanted is not None and self._wanted.fixture in getattr(item, "fixturenames", ()):
            pytest.skip(_ENOUGH)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self) -> tuple[str, str, str]:
        return "", "", ""  # what is printed last says why the process failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._unloaded.append(_reason(report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup" and report.skipped and _ENOUGH not in report.longreprtext:
            self._failures.append(f"{report.nodeid} is skipped there: {_skip_reason(report)}")
        if report.failed:
            self._failures.append(_reason(report.longreprtext))


class _Run:
    """What ``@tunable`` asks for the session of the run."""

    def __init__(self, exporter: Exporter, host: _Host) -> None:
        self._exporter, self._host = exporter, host

    def session(self) -> Exporter:
        return self._exporter

    def evaluate(self, workload: Workload) -> Any:
        self._host.export(workload)
        return _Unmeasured(workload)


class _Unmeasured:
    """A kernel that was not asked for: it is not run, and a test that wants to ends there."""

    artifact = None
    trials = ()

    def __init__(self, workload: Workload) -> None:
        verdict = SimpleNamespace(kind="checked", summary="")
        names = {"name": workload.name, "id": workload.id}
        self.outcome = SimpleNamespace(verdict=verdict, latency_ms=None, reference_ms=None, speedup=None, **names)

    @property
    def config(self) -> None:
        pytest.skip(_ENOUGH)


def _candidates(items: Sequence[pytest.Item], request: Request) -> list[pytest.Item]:
    """The tests that may give the kernel, the likeliest first: the same one, then all that have such a fixture."""
    fixture = request.fixture
    parameters = request.name.partition("[")[2].rstrip("]")
    same = [item for item in items if item.nodeid == request.test]
    others = [item for item in items if item not in same and fixture in getattr(item, "fixturenames", ())]
    return same + sorted(others, key=lambda item: parameters not in item.name)


def _reason(text: str) -> str:
    """The last lines of a traceback that say what was raised."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return " ".join(raised or lines[-1:])[:_REASON_LIMIT]


def _skip_reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)[:_REASON_LIMIT]


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
