"""``@tunable`` and what the test gets: the bridge from pytest's fixtures to the session's workloads."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_kerneltune.backends import as_kernel
from pytest_kerneltune.errors import KernelError, KernelTuneError, UsageError
from pytest_kerneltune.identity import identity
from pytest_kerneltune.options import RUN_PLUGIN
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.threshold import parse_latency, parse_threshold
from pytest_kerneltune.trial import Config, Trial

if TYPE_CHECKING:
    from pytest_kerneltune.backends import Kernel
    from pytest_kerneltune.outcome import Outcome
    from pytest_kerneltune.session import Evaluation
    from pytest_kerneltune.workload import Workload

_Scope = Literal["session", "package", "module", "class", "function"]


class TunedKernel:
    """A kernel with its tuned config; calling it runs the kernel once with that config.

    Latencies are in ms and None where nothing was timed (plain ``pytest``; no reference). ``speedup`` is the
    reference's latency over the kernel's. ``verdict`` is "ok", "regressed", "improved", "new", "incomparable",
    "noisy", "invalid", "wrong", "failed" or, where nothing was timed, "checked". ``trials`` are the configs tried.
    """

    def __init__(self, kernel: Kernel, evaluation: Evaluation, workload: Workload) -> None:
        self._kernel = kernel
        self._evaluation = evaluation
        self._workload = workload

    def __call__(self) -> Any:
        if self._evaluation.config is None:
            raise KernelError(f"{self.outcome.name} has no config that works: {self.outcome.verdict.summary}")
        return self._kernel(self._evaluation.config, self._evaluation.artifact)

    def __repr__(self) -> str:
        return f"<TunedKernel {self.outcome.id} {self.verdict} {dict(self.config or {})}>"

    def measure_again(self, evaluate: Callable[[Workload], Evaluation]) -> None:
        """Have ``evaluate`` find out about the kernel once more: its test runs again."""
        self._evaluation = evaluate(self._workload)

    @property
    def config(self) -> Config | None:
        return self._evaluation.config

    @property
    def latency_ms(self) -> float | None:
        return self.outcome.latency_ms

    @property
    def reference_latency_ms(self) -> float | None:
        return self.outcome.reference_ms

    @property
    def speedup(self) -> float | None:
        return self.outcome.speedup

    @property
    def verdict(self) -> str:
        return self.outcome.verdict.kind

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self._evaluation.trials

    @property
    def outcome(self) -> Outcome:
        """Everything this run found out, as plain values."""
        return self._evaluation.outcome

    @property
    def evaluation(self) -> Evaluation:
        return self._evaluation


def tunable(
    *,
    space: Mapping[str, Parameter] | None = None,
    where: Callable[[Config], bool] | None = None,
    threshold: str | float | None = None,
    target_latency: str | None = None,
    configs: Sequence[Config] = (),
    scope: _Scope = "function",
    params: Iterable[Any] | None = None,
    autouse: bool = False,
    ids: Sequence[Any] | Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Make a pytest fixture of a function that returns a kernel; a test that requests it is a performance test.

    ``space`` maps parameter names to kinds (``choice``, ``boolean``, ``integer``, ``power_of_two``, ``permutation``,
    ``list_of``; with ``when=`` it only matters beside given values of others); a kernel with a space of its own (a
    HelionKernel) goes without, or has that narrowed by what is given. ``where`` is a constraint that is checked before
    anything is compiled, ``threshold`` this kernel's regression threshold ("3%" or 0.03; else the session's),
    ``target_latency`` a latency that is good enough ("40us"): the search ends once a config is that fast. ``configs``
    are known-good configs to start from (a partial one is completed from the defaults). The other arguments are those
    of ``pytest.fixture``. Raises UsageError.
    """
    given_space = None if space is None else ConfigSpace(space, where)
    limit = None if threshold is None else parse_threshold(threshold, "@tunable(threshold=...)")
    target = None if target_latency is None else parse_latency(target_latency, "@tunable(target_latency=...)")

    def decorate(function: Callable[..., Any]) -> Any:
        if not inspect.isfunction(function):
            raise UsageError(f"@tunable(...) decorates a function, not {function!r}")

        def tuned(request: pytest.FixtureRequest, returned: Any) -> TunedKernel:
            return _tuned(request, returned, _Tunable(function, given_space, where, limit, target, configs))

        fixture = pytest.fixture(scope=scope, params=params, autouse=autouse, ids=ids, name=name)
        return fixture(_requesting(function, tuned))

    return decorate


def _requesting(
    function: Callable[..., Any], tuned: Callable[[pytest.FixtureRequest, Any], TunedKernel]
) -> Callable[..., Any]:
    """``function`` as a fixture that also requests ``request`` and passes what it returns (or yields) to ``tuned``."""
    signature = inspect.signature(function)
    fixture: Any
    wants_request = "request" in signature.parameters
    added = [] if wants_request else [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)]

    def call(kwargs: dict[str, Any]) -> tuple[pytest.FixtureRequest, dict[str, Any]]:
        request = kwargs["request"]
        return request, kwargs if wants_request else {k: v for k, v in kwargs.items() if k != "request"}

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def yielding(*args: Any, **kwargs: Any) -> Iterator[TunedKernel]:
            __tracebackhide__ = True
            request, own = call(kwargs)
            with contextmanager(function)(*args, **own) as returned:
                yield tuned(request, returned)

        fixture = yielding
    else:

        @functools.wraps(function)
        def returning(*args: Any, **kwargs: Any) -> TunedKernel:
            __tracebackhide__ = True
            request, own = call(kwargs)
            return tuned(request, function(*args, **own))

        fixture = returning
    fixture.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
    requesting: Callable[..., Any] = fixture
    return requesting


@dataclass(frozen=True)
class _Tunable:
    """What ``@tunable`` was given; the threshold is a fraction, the target latency ms."""

    function: Callable[..., Any]
    space: ConfigSpace | None
    where: Callable[[Config], bool] | None
    threshold: float | None
    target_ms: float | None
    configs: Sequence[Config]


def _tuned(request: pytest.FixtureRequest, returned: Any, given: _Tunable) -> TunedKernel:
    from pytest_kerneltune.api import kernel_space, starting_configs
    from pytest_kerneltune.workload import Workload

    run = request.config.pluginmanager.get_plugin(RUN_PLUGIN)
    if run is None:
        pytest.skip("the kerneltune plugin is disabled")
    file, name = identity(request, given.function)
    try:
        kernel = as_kernel(returned)
        space = kernel_space(kernel, given.space, given.where)
        device = run.session().device(kernel)
        workload = Workload(
            name=name,
            file=file,
            kernel=kernel,
            space=space,
            configs=starting_configs(space, given.configs),
            threshold=given.threshold,
            target_ms=given.target_ms,
            device_name=device.name,
            device_key=device.hard,
            toolchain=run.session().toolchain(kernel),
            modules=tuple(_modules(given.function)),
            test=request._pyfuncitem.nodeid,
        )
        return TunedKernel(kernel, run.evaluate(workload), workload)
    except KernelTuneError as error:
        # Its text says what is wrong, and none of the user's lines is on the way.
        raise pytest.fail.Exception(f"{file}::{name}: {error}", pytrace=False) from None


def _modules(function: Callable[..., Any]) -> Iterator[Any]:
    """Test modules travel to workers by value: a worker that imported them would run their top level."""
    for name, module in list(sys.modules.items()):
        if name == function.__module__ or name.rpartition(".")[2] == "conftest":
            yield module
