"""pytest's hooks, each handing over to the session or to a report. Only this module, ``fixture`` and ``testing``
import pytest; nothing heavy is imported before a kernel needs it."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kerneltune.errors import GateFailure
from pytest_kerneltune.errors import UsageError as KernelUsageError
from pytest_kerneltune.options import OPTIONS, RUN_PLUGIN, spelled_out
from pytest_kerneltune.settings import Settings, change_environment, environment

if TYPE_CHECKING:
    from pytest_kerneltune.fixture import TunedKernel
    from pytest_kerneltune.live import LiveProgress
    from pytest_kerneltune.outcome import Outcome, VerdictSummary
    from pytest_kerneltune.results import Results
    from pytest_kerneltune.session import Evaluation, Session
    from pytest_kerneltune.workload import Workload

_MARKER = "kerneltune(threshold=None, missing_baseline=None): judge this test's kernels by another threshold or policy"


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
    config.pluginmanager.register(Run(config, settings), RUN_PLUGIN)


class Run:
    """The hooks of one pytest process; the session and the reports are made when a kernel first needs them.

    By methods, not properties: pytest 8.0 reads every attribute of a plugin when it looks for fixtures.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config, self._settings = config, settings
        self._started, self._began = datetime.now(UTC), time.monotonic()
        self._session: Session | None = None
        self._live: LiveProgress | None = None
        self._results: Results | None = None
        self._reported: set[tuple[str, ...]] = set()
        self._asked: dict[pytest.FixtureDef[Any], list[pytest.FixtureDef[Any]]] = {}
        self._ran = False
        self._received: list[dict[str, Any]] = []

    def session(self) -> Session:
        """The kernels of this process."""
        if self._session is None:
            from pytest_kerneltune.session import Session

            live = self.live()
            self._session = Session(self._settings, live.progress, live.say)
        return self._session

    def evaluate(self, workload: Workload) -> Evaluation:
        """What the session finds out about a kernel, shown live."""
        try:
            return self.session().evaluate(workload)
        finally:
            self.live().clear()

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
        return publish(self._received, self._settings, self._config.invocation_params.args, self._started, seconds)

    def pytest_report_header(self) -> str | None:
        if not self._settings.gating:
            return None
        from pytest_kerneltune.report.terminal import header_line

        return header_line(self._settings)

    def _warm(self) -> None:
        """Have the session get ready for kernels on a GPU, where this process will tune any."""
        option = self._config.getoption
        controls = option("dist", "no") != "no" and not hasattr(self._config, "workerinput")
        if self._settings.searching and not controls and not option("collectonly"):
            self.session().warm()

    def pytest_sessionstart(self) -> None:
        self._warm()  # while the tests are collected

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        self._warm()
        if not hasattr(self._config, "workerinput"):  # xdist would take a usage error there for a crash
            for item in items:
                _judging(item)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        try:
            _judging(item)
        except pytest.UsageError as error:
            pytest.fail(str(error), pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        option = session.config.getoption
        self._ran = not any(option(name, False) for name in ("collectonly", "setuponly", "setupplan"))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: Any
    ) -> Generator[None, object | None, object | None]:
        """Remember what the fixture asks for while it is set up: tests that find it ready depend on that too."""
        __tracebackhide__ = True
        known = set(request._fixture_defs)
        try:
            return (yield)
        finally:
            self._asked[fixturedef] = [d for name, d in request._fixture_defs.items() if name not in known]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        __tracebackhide__ = True
        if unusable := [k for k in self._kernels(item) if k.config is None]:
            _fail(item, unusable)
        result = yield
        _fail(item, self._kernels(item))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        outcomes = [_outcome(item, k) for k in self._kernels(item)] if call.when == "call" else []
        for outcome in outcomes:
            item.user_properties += [p for p in _properties(outcome) if p not in item.user_properties]
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, GateFailure):
            report.longrepr = _message(item, call.excinfo)
        if news := [outcome.to_json() for outcome in outcomes if self._is_news(outcome)]:
            # xdist sends an attribute to the controller with the report, before the worker could die. As text, since
            # it can send exact built-in types only.
            report.__dict__["kerneltune"] = json.dumps(news)
        return report

    def _kernels(self, item: pytest.Item) -> list[TunedKernel]:
        """The tuned kernels that the item's fixtures gave, however they were requested."""
        request = getattr(item, "_request", None)
        if request is None or "pytest_kerneltune.fixture" not in sys.modules:
            return []
        from pytest_kerneltune.fixture import TunedKernel
        from pytest_kerneltune.identity import active_definitions

        results = [d.cached_result for d in active_definitions(request, self._asked)]
        values = [result[0] for result in results if result is not None]
        return list(dict.fromkeys(value for value in values if isinstance(value, TunedKernel)))

    def _is_news(self, outcome: Outcome) -> bool:
        """Whether the controller has not heard of this outcome yet; a marker may have given it another verdict."""
        key = (outcome.id, outcome.fingerprint, outcome.verdict.kind, str(outcome.verdict.fails))
        is_news = key not in self._reported
        self._reported.add(key)
        return is_news

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._received += json.loads(getattr(report, "kerneltune", "[]"))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._session is not None:
            self._session.close()
        if hasattr(self._config, "workerinput") or not (self._ran and (self._settings.gating or self._received)):
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


def _verdict(item: pytest.Item, kernel: TunedKernel) -> VerdictSummary:
    """The verdict on ``kernel`` for this test: its markers may set another threshold or policy."""
    if not (judging := _judging(item)):
        return kernel.outcome.verdict
    return kernel.evaluation.verdict_at(judging.get("threshold"), judging.get("missing_baseline"))


def _outcome(item: pytest.Item, kernel: TunedKernel) -> Outcome:
    return replace(kernel.outcome, verdict=_verdict(item, kernel))


def _fail(item: pytest.Item, kernels: Sequence[TunedKernel]) -> None:
    """Raise what the verdicts on ``kernels`` come to for this test, if anything."""
    if not kernels:
        return
    from pytest_kerneltune.verdicts import failure

    failures = [error for kernel in kernels if (error := failure(_verdict(item, kernel))) is not None]
    if failures:
        raise failures[0] if len(failures) == 1 else GateFailure("\n\n".join(map(str, failures)))


def _message(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]) -> Any:
    """What the user reads of a gate's failure: its text without a traceback, its first line for one-line summaries."""
    shown = failure.getrepr(style="value")
    if (crash := getattr(shown, "reprcrash", None)) is not None:
        path, line, _ = item.reportinfo()
        crash.path, crash.lineno = str(path), (line or 0) + 1
        crash.message = str(failure.value).partition("\n")[0]
    return shown


def _judging(item: pytest.Item) -> dict[str, Any]:
    """The values of the item's ``kerneltune`` markers, the closest first; raises pytest's UsageError."""
    from pytest_kerneltune.threshold import parse_threshold

    values: dict[str, Any] = {}
    for marker in item.iter_markers("kerneltune"):
        where = f"{item.nodeid}: @pytest.mark.kerneltune"
        unknown = sorted(set(marker.kwargs) - {"threshold", "missing_baseline"})
        if marker.args or unknown:
            wrong = f"{unknown[0]}=" if unknown else "a positional argument"
            raise pytest.UsageError(f"{where} got {wrong}; it takes threshold= and missing_baseline=")
        values = {**marker.kwargs, **values}
        if values.get("missing_baseline") not in (None, "fail", "warn"):
            raise pytest.UsageError(f"{where}(missing_baseline={values['missing_baseline']!r}): use 'fail' or 'warn'")
        if (threshold := values.get("threshold")) is not None and not isinstance(threshold, float):
            try:
                values["threshold"] = parse_threshold(threshold, f"{where}(threshold=...)")
            except KernelUsageError as error:
                raise pytest.UsageError(str(error)) from None
    return values


def _properties(outcome: Outcome) -> list[tuple[str, object]]:
    """Flat scalars for JUnit's <properties>."""
    prefix = f"kerneltune.{outcome.name}"
    change = outcome.verdict.change
    values = {
        "verdict": outcome.verdict.kind,
        "latency_ms": outcome.latency_ms,
        "reference_ms": outcome.reference_ms,
        "change_pct": None if change is None else round(100 * change[0], 3),
    }
    return [(f"{prefix}.{key}", value) for key, value in values.items() if value is not None]
