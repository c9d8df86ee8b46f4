"""pytest's hooks, each handing over to the session or to a report.

Only this module and its neighbours (``items``, ``covering``, ``fixture``, ``identity``, ``testing``) import pytest;
nothing heavy is imported before a kernel needs it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kerneltune.errors import GateFailure
from pytest_kerneltune.errors import UsageError as KernelUsageError
from pytest_kerneltune.items import Requested, fail, judged, judging, message, set_properties
from pytest_kerneltune.options import OPTIONS, RUN_PLUGIN, spelled_out
from pytest_kerneltune.settings import Settings, change_environment, environment

if TYPE_CHECKING:
    from pytest_kerneltune.arrivals import Arrival
    from pytest_kerneltune.basetree import BaseTree
    from pytest_kerneltune.covering import Covering
    from pytest_kerneltune.fixture import TunedKernel
    from pytest_kerneltune.live import LiveProgress
    from pytest_kerneltune.outcome import Outcome
    from pytest_kerneltune.results import Results
    from pytest_kerneltune.retries import Retries
    from pytest_kerneltune.session import Evaluation, Session
    from pytest_kerneltune.workload import Workload

_MARKER = "kerneltune(threshold=None, missing_baseline=None): judge this test's kernels by another threshold or policy"

_OTHER_ACTIONS = (
    *("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test"),
    *("cacheshow", "markers", "help", "version"),
)
"""Options with which pytest runs no tests: names of their values."""

_BASE_TREE = "kerneltune_base_tree"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kerneltune", "tuning kernels and gating on their speed")
    for option in OPTIONS:
        parser.addini(option.name, option.ini_help)
        if option.flag:
            group.addoption(option.flag, **option.arguments)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    args[:] = spelled_out(args)
    # pytest read the arguments before: it took the path in "--autotune perf/" for the option's value.
    early_config.known_args_namespace = parser.parse_known_args(args, namespace=copy.copy(early_config.option))
    given = early_config.known_args_namespace.autotune
    if "PYTEST_XDIST_WORKER" in environment() and (early_config.getini("autotune") if given is None else given):
        from pytest_kerneltune.devices import of_xdist_worker

        change_environment(of_xdist_worker(environment()))  # before a conftest imports what initialises CUDA


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    try:
        settings = Settings.from_sources(config.getoption, config.getini, environment(), config.rootpath)
    except KernelUsageError as error:
        raise pytest.UsageError(str(error)) from None
    if config.getoption("setuponly", False):  # fixtures run and no test does, so that nothing can fail
        settings = replace(settings, autotune=None)
    covering = None
    if settings.gating:
        from pytest_kerneltune.covering import Covering

        config.pluginmanager.register(covering := Covering(config))
    config.pluginmanager.register(requested := Requested())
    config.pluginmanager.register(Run(config, settings, requested, covering), RUN_PLUGIN)


class Run:
    """The hooks of one pytest process; the session and the reports are made when a kernel first needs them.

    By methods, not properties: pytest 8.0 reads every attribute of a plugin when it looks for fixtures.
    """

    def __init__(
        self, config: pytest.Config, settings: Settings, requested: Requested, covering: Covering | None
    ) -> None:
        self._config, self._settings = config, settings
        self._started, self._began = datetime.now(UTC), time.monotonic()
        self._session: Session | None = None
        self._live: LiveProgress | None = None
        self._results: Results | None = None
        self._retries: Retries | None = None
        self._reported: set[tuple[str, ...]] = set()
        self._requested = requested
        self._ran = False
        self._received: list[Arrival] = []
        self._covering = covering
        self._base_tree: BaseTree | None = None

    def session(self) -> Session:
        """The kernels of this process."""
        if self._session is None:
            from pytest_kerneltune.against import options_of
            from pytest_kerneltune.bases import History
            from pytest_kerneltune.session import Session

            live = self.live()
            history = History(self.base_tree, options_of(self._config))
            self._session = Session(self._settings, live.progress, live.say, history)
        return self._session

    def evaluate(self, workload: Workload) -> Evaluation:
        """What the session finds out about a kernel, shown live."""
        session = self.session()
        try:
            return (session.measure_again if self.retries().take(workload.id) else session.evaluate)(workload)
        finally:
            self.live().clear()

    def retries(self) -> Retries:
        """The kernels of tests that failed."""
        if self._retries is None:
            from pytest_kerneltune.retries import Retries

            self._retries = Retries()
        return self._retries

    def live(self) -> LiveProgress:
        """Where progress is shown."""
        if self._live is None:
            from pytest_kerneltune.live import LiveProgress

            manager = self._config.pluginmanager
            self._live = LiveProgress(manager.get_plugin("terminalreporter"), manager.get_plugin("capturemanager"))
        return self._live

    def _publish(self) -> Results:
        """What the run found, published: only ever asked for at the end, and not in an xdist worker."""
        from pytest_kerneltune.results import publish

        seconds = time.monotonic() - self._began
        complete = self._covering.coverage.complete() if self._covering is not None else ()
        args = self._config.invocation_params.args
        return publish(self._received, self._settings, args, self._started, seconds, complete)

    def pytest_report_header(self) -> str | None:
        if not self._settings.gating:
            return None
        from pytest_kerneltune.report.terminal import header_line

        return header_line(self._settings)

    def _warm(self) -> None:
        """Have the session get ready for kernels on a GPU, where this process will tune any."""
        if self._settings.searching and not self._controls() and self._runs_tests():
            self.session().warm()

    def _controls(self) -> bool:
        """Whether others run the tests: workers of xdist."""
        return self._config.getoption("dist", "no") != "no" and not self._is_worker()

    def _is_worker(self) -> bool:
        return hasattr(self._config, "workerinput")

    def _runs_tests(self) -> bool:
        """Whether pytest runs tests, and does not only list or plan something."""
        return not any(self._config.getoption(name, False) for name in _OTHER_ACTIONS)

    def base_tree(self) -> BaseTree:
        """The checkout of ``--against``, made when first asked for; an xdist worker has its controller's.

        Raises UsageError where git does not have it.
        """
        if self._base_tree is None:
            from pytest_kerneltune.basetree import BaseTree

            root, against = self._settings.root, self._settings.against
            assert against is not None
            shared = getattr(self._config, "workerinput", {}).get(_BASE_TREE)
            self._base_tree = (
                BaseTree.shared(root, json.loads(shared)) if shared else BaseTree.at_merge_base(root, against)
            )
        return self._base_tree

    def pytest_sessionstart(self) -> None:
        if self._controls():
            self._check_out()  # before there are workers, which would outlive a usage error
        self._warm()  # while the tests are collected

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        self._warm()
        if not self._is_worker():  # xdist would take a usage error there for a crash
            for item in items:
                judging(item)
            if items:
                self._check_out()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if tree := self._check_out():
            node.workerinput[_BASE_TREE] = json.dumps(tree.to_json())

    def _check_out(self) -> BaseTree | None:
        """The checkout of ``--against`` before any test needs it, so that a wrong one is a usage error."""
        if self._settings.against is None or not self._settings.gating or not self._runs_tests():
            return None
        try:
            return self.base_tree()
        except KernelUsageError as error:
            raise pytest.UsageError(str(error)) from None

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._retries is not None:
            self._retries.begin(item.nodeid)
        try:
            judging(item)
        except pytest.UsageError as error:
            pytest.fail(str(error), pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        self._ran = self._runs_tests()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        __tracebackhide__ = True
        if unusable := [k for k in self._fresh_kernels(item) if k.config is None]:
            fail(item, unusable)
        result = yield
        fail(item, self._fresh_kernels(item))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        kernels = self._requested.kernels(item) if call.when == "call" else []
        outcomes = [self.retries().told(judged(item, k)) for k in kernels]
        for outcome in outcomes:
            set_properties(item, outcome)
        report = yield
        by_gate = call.excinfo is not None and isinstance(call.excinfo.value, GateFailure)
        if call.excinfo is not None and by_gate:
            report.longrepr = message(item, call.excinfo)
        if report.failed and outcomes:
            self.retries().failed(item.nodeid, [o for o in outcomes if o.verdict.fails or not by_gate])
        if news := [outcome.to_json() for outcome in outcomes if self._is_news(outcome)]:
            # xdist sends an attribute to the controller with the report, before the worker could die. As text, since
            # it can send exact built-in types only.
            report.__dict__["kerneltune"] = json.dumps(news)
        return report

    def _fresh_kernels(self, item: pytest.Item) -> list[TunedKernel]:
        """The item's kernels; those that failed it before it was run again are measured anew."""
        kernels = self._requested.kernels(item)
        for kernel in kernels:
            if self.retries().is_due(kernel.outcome.id):  # its fixture lives on, so it was not asked for once more
                kernel.measure_again(self.evaluate)
        return kernels

    def _is_news(self, outcome: Outcome) -> bool:
        """Whether the controller has not heard of this outcome yet; a marker may have given it another verdict."""
        verdict = outcome.verdict
        key = (outcome.id, outcome.fingerprint, str(outcome.latency_ms), verdict.kind, str(verdict.fails))
        is_news = key not in self._reported
        self._reported.add(key)
        return is_news

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if brought := json.loads(getattr(report, "kerneltune", "[]")):
            from pytest_kerneltune.arrivals import Arrival

            self._received += [Arrival.of(report, data) for data in brought]

    @pytest.hookimpl(trylast=True)  # so that nobody's exit status hides that nothing was measured
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for held in (self._session, self._base_tree):
            if held is not None:
                held.close()
        if self._is_worker() or not (self._ran and (self._settings.gating or self._received)):
            return
        self._results = self._publish()
        if self._results.failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._results is None:
            return
        width, verbosity = terminalreporter._tw.fullwidth, self._config.get_verbosity()
        terminalreporter.ensure_newline()
        terminalreporter.section("kerneltune")
        for line in self._results.lines(width, verbosity):
            terminalreporter.write_line(line.text, **line.markup)
        for command in self._results.annotations(environment()):
            terminalreporter.write_line(command)
