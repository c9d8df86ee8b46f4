"""Tuning without pytest: ``tune(kernel, space=...)``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pytest_kerneltune.backends import Kernel, as_kernel
from pytest_kerneltune.driver import Progress, checked_configs
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.search import DEFAULT_SEARCH
from pytest_kerneltune.session import Evaluation, Session
from pytest_kerneltune.settings import Settings, environment
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Budget, Config, Trial
from pytest_kerneltune.verdicts import failure
from pytest_kerneltune.workload import Workload

_NO_INI: dict[str, object] = {}


@dataclass(frozen=True)
class TuneResult:
    """A tuned kernel: latencies in ms, measured afresh after the search; ``outcome`` holds all that was found out."""

    config: Config
    latency_ms: float
    reference_latency_ms: float | None
    trials: tuple[Trial, ...]
    outcome: Outcome

    @property
    def speedup(self) -> float | None:
        """The reference's latency over the kernel's; None without a reference."""
        return self.outcome.speedup


def tune(
    kernel: Any,
    *,
    space: Mapping[str, Parameter] | ConfigSpace | None = None,
    where: Callable[[Config], bool] | None = None,
    algorithm: str = DEFAULT_SEARCH,
    effort: str = "quick",
    budget: float | Budget | None = None,
    seed: int = 0,
    configs: Sequence[Config] = (),
    cache: str | Path | None = None,
    force: bool = False,
    name: str = "",
    progress: Callable[[str, Progress, Budget], None] = lambda *_: None,
) -> TuneResult:
    """Find the config with which ``kernel`` (a callable, or a CKernel, TritonKernel, ...) runs fastest.

    ``space``, ``where`` and ``configs`` are those of ``@tunable`` (a HelionKernel needs no ``space``); ``budget`` is
    seconds or a Budget; ``cache`` a directory, "off", or None for the shared one; ``force`` tunes again on a cache hit;
    ``name`` tells kernels of one source apart. Raises UsageError for a wrong argument, WrongOutput where no config is
    right, and NothingMeasured where none works or the kernel can't be set up.
    """
    limits = budget if isinstance(budget, Budget) else Budget(seconds=budget)
    given = {
        "autotune": algorithm,
        "autotune_effort": effort,
        "autotune_seed": seed,
        "autotune_budget": limits.seconds,
        "autotune_configs": limits.configs,
        "autotune_target": None if limits.target_ms is None else f"{limits.target_ms:.9f}ms",
        "autotune_cache": cache,
        "autotune_force": "yes" if force else None,
        "missing_baseline": "warn",
    }
    options = {key: str(value) for key, value in given.items() if value is not None}
    settings = Settings.from_sources(options.get, _NO_INI.get, environment(), Path.cwd())
    session = Session(settings, progress)
    try:
        evaluation = _evaluated(session, kernel, space, where, configs, name)
    finally:
        session.close()
    if (error := failure(evaluation.outcome.verdict)) is not None:
        raise error
    outcome = evaluation.outcome
    assert evaluation.config is not None
    assert outcome.latency_ms is not None
    return TuneResult(evaluation.config, outcome.latency_ms, outcome.reference_ms, evaluation.trials, outcome)


def kernel_space(
    kernel: Kernel, given: ConfigSpace | None, where: Callable[[Config], bool] | None = None
) -> ConfigSpace:
    """The space to tune ``kernel`` in: ``given``, or the kernel's own, narrowed by ``given`` and ``where``.

    A kernel with a space of its own has it as ``space``, with a method ``narrowed(parameters, where)``. Raises
    UsageError where there is neither, and whatever the kernel does where it has no such space.
    """
    if not hasattr(type(kernel), "space"):
        if given is None:
            raise UsageError(f"space= is missing: a {type(kernel).__name__} does not say what it can be tuned with")
        return given
    own: Any = getattr(kernel, "space")  # noqa: B009 - not every kernel has it
    if given is None and where is None:
        return cast(ConfigSpace, own)
    constraint = where if given is None else given.where
    return cast(ConfigSpace, own.narrowed({} if given is None else given.parameters, constraint))


def starting_configs(space: ConfigSpace, configs: Sequence[Config]) -> tuple[Config, ...]:
    """The user's known-good configs, and those that a kernel's own space comes with (``seeds``), canonical."""
    return (*checked_configs(space, configs), *getattr(space, "seeds", ()))


def _evaluated(
    session: Session,
    kernel: Any,
    space: Mapping[str, Parameter] | ConfigSpace | None,
    where: Callable[[Config], bool] | None,
    configs: Sequence[Config],
    name: str,
) -> Evaluation:
    if isinstance(space, ConfigSpace) and where is not None:
        raise UsageError("tune(where=...): a ConfigSpace has a constraint of its own; give it there")
    given = space if space is None or isinstance(space, ConfigSpace) else ConfigSpace(space, where)
    target = as_kernel(kernel)
    checked_space = kernel_space(target, given, where)
    device = session.device(target)
    main = sys.modules.get("__main__")
    workload = Workload(
        name=name or getattr(kernel, "__name__", "") or getattr(kernel, "function", "") or type(kernel).__name__,
        file=Path(getattr(main, "__file__", None) or "interactive.py").name,
        kernel=target,
        space=checked_space,
        configs=starting_configs(checked_space, configs),
        device_name=device.name,
        device_key=device.hard,
        toolchain=session.toolchain(target),
        modules=(main,) if main is not None else (),
    )
    return session.evaluate(workload)
