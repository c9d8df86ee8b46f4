"""Which kernels a test uses, and what the verdicts on them do to it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kerneltune.errors import GateFailure, UsageError

if TYPE_CHECKING:
    from pytest_kerneltune.fixture import TunedKernel
    from pytest_kerneltune.outcome import Outcome, VerdictSummary


class Requested:
    """A plugin that knows the kernels that a test's fixtures gave, however they were requested."""

    def __init__(self) -> None:
        self._asked: dict[pytest.FixtureDef[Any], list[pytest.FixtureDef[Any]]] = {}

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

    def kernels(self, item: pytest.Item) -> list[TunedKernel]:
        """The tuned kernels that the item's fixtures gave."""
        request = getattr(item, "_request", None)
        if request is None or "pytest_kerneltune.fixture" not in sys.modules:
            return []
        from pytest_kerneltune.fixture import TunedKernel
        from pytest_kerneltune.identity import active_definitions

        results = [d.cached_result for d in active_definitions(request, self._asked)]
        values = [result[0] for result in results if result is not None]
        return list(dict.fromkeys(value for value in values if isinstance(value, TunedKernel)))


def judging(item: pytest.Item) -> dict[str, Any]:
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
            except UsageError as error:
                raise pytest.UsageError(str(error)) from None
    return values


def judged(item: pytest.Item, kernel: TunedKernel) -> Outcome:
    """The kernel's outcome with the verdict for this test: its markers may set another threshold or policy."""
    return replace(kernel.outcome, verdict=_verdict(item, kernel))


def fail(item: pytest.Item, kernels: Sequence[TunedKernel]) -> None:
    """Raise what the verdicts on ``kernels`` come to for this test, if anything."""
    if not kernels:
        return
    from pytest_kerneltune.verdicts import failure

    failures = [error for kernel in kernels if (error := failure(_verdict(item, kernel))) is not None]
    if failures:
        raise failures[0] if len(failures) == 1 else GateFailure("\n\n".join(map(str, failures)))


def message(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]) -> Any:
    """What the user reads of a gate's failure: its text without a traceback, its first line for one-line summaries."""
    shown = failure.getrepr(style="value")
    if (crash := getattr(shown, "reprcrash", None)) is not None:
        path, line, _ = item.reportinfo()
        crash.path, crash.lineno = str(path), (line or 0) + 1
        crash.message = str(failure.value).partition("\n")[0]
    return shown


def set_properties(item: pytest.Item, outcome: Outcome) -> None:
    """Put what JUnit files say of the kernel into the item's properties, in place of what an earlier run of it put."""
    from pytest_kerneltune.report.junit import properties

    values = properties(outcome)
    item.user_properties[:] = [p for p in item.user_properties if p[0] not in values]
    item.user_properties += list(values.items())


def _verdict(item: pytest.Item, kernel: TunedKernel) -> VerdictSummary:
    if not (values := judging(item)):
        return kernel.outcome.verdict
    return kernel.evaluation.verdict_at(values.get("threshold"), values.get("missing_baseline"))
