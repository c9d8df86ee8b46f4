"""All kernels of a run: tune, measure, judge, collect. No pytest.

Each kernel is evaluated once in a process, whoever asks for it; every test that uses it shares the evaluation.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

from pytest_kerneltune import judging, verdicts
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.slowed import SlowedKernel
from pytest_kerneltune.bases import Bases, History
from pytest_kerneltune.basetree import head
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.cache import TuningCache
from pytest_kerneltune.choosing import Tuner, best_known
from pytest_kerneltune.devices import Lookup, alike, device_of, parent_uuid, pinned
from pytest_kerneltune.driver import Progress
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gating import Gate
from pytest_kerneltune.gpu import DeviceInfo
from pytest_kerneltune.guard import Guard
from pytest_kerneltune.keeping import Choice
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.outcome import Outcome, VerdictSummary
from pytest_kerneltune.place import BaselinePlace, keep_code, tuning_cache
from pytest_kerneltune.selftest import self_test
from pytest_kerneltune.settings import Settings, environment
from pytest_kerneltune.source import source_digest
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.surroundings import Surroundings
from pytest_kerneltune.trial import Budget, Clock, Config, Trial
from pytest_kerneltune.turns import DeviceTurn
from pytest_kerneltune.versions import versions
from pytest_kerneltune.workload import Workload

_TOOLCHAIN = ("python", "numpy", "torch", "triton", "helion")
_PATIENCE_S = 0.5  # for nvidia-smi's answer, which takes a tenth of it as a rule, before tests are collected
_DIGEST = 16  # hex digits of a digest in a baseline: enough to tell two kernels' inputs apart, short enough to read


@dataclass(frozen=True)
class Evaluation:
    """What this run knows of one kernel: the outcome, and what it takes to run it or to judge it once more."""

    outcome: Outcome
    trials: tuple[Trial, ...] = ()
    config: Config | None = None
    artifact: Any = None
    verdict_at: Callable[[float | None, str | None], VerdictSummary] = field(
        default=lambda *_: verdicts.checked(), repr=False
    )
    """The verdict under another threshold (a fraction) and policy for missing baselines; None leaves one as it is."""


class Session(Surroundings):
    """The kernels of one process. ``progress`` is told a kernel's name, where its tuning stands and its budget,
    ``say`` gets single lines for the user; ``history`` is needed to compare with older versions of a kernel."""

    def __init__(
        self,
        settings: Settings,
        progress: Callable[[str, Progress, Budget], None] = lambda *_: None,
        say: Callable[[str], None] = lambda _: None,
        history: History | None = None,
    ) -> None:
        super().__init__(settings)
        self.bases = Bases(settings, history, self.open_benchmark)
        self._is_versioned = history is not None
        self.say = say
        self._workers = Workers(settings.compile_jobs)
        self._warnings: list[str] = []
        self._cache = tuning_cache(settings, self._warnings.append)
        self._tuner = Tuner(settings, self._cache, progress, say)
        self.instruments: dict[Clock, Mapping[str, Any]] = {}
        """What was measured of each clock when this process first used it."""
        self._evaluations: dict[tuple[str, str, str], Evaluation] = {}
        self._is_warm = False

    def evaluate(self, workload: Workload) -> Evaluation:
        """Tune, measure and judge the kernel as the settings say; what an earlier call found, if there was one.

        Raises StoreError for a baseline file that can't be read, UsageError for settings that don't fit the kernel.
        """
        key = (workload.file, workload.name, workload.fingerprint)
        if key not in self._evaluations:
            self._evaluations[key] = _Evaluator(self, workload).evaluate()
        return self._evaluations[key]

    def measure_again(self, workload: Workload) -> Evaluation:
        """As :meth:`evaluate`, but measured anew, with the config that was found before."""
        key = (workload.file, workload.name, workload.fingerprint)
        self._evaluations[key] = _Evaluator(self, workload, self._evaluations.get(key)).evaluate()
        return self._evaluations[key]

    @property
    def tuner(self) -> Tuner:
        return self._tuner

    @property
    def cache(self) -> TuningCache:
        return self._cache

    def warn(self, text: str) -> None:
        """Have ``text`` told with the next kernel."""
        self._warnings.append(text)

    def take_warnings(self) -> tuple[str, ...]:
        """What was warned of since the last call."""
        taken, self._warnings[:] = tuple(self._warnings), []
        return taken

    def benchmark(self, workload: Workload) -> Benchmark:
        """Where the configs of the workload's space are measured."""
        keep_code(workload.kernel, self.settings)
        gauged = self.settings.gating and workload.kernel.clock not in self.instruments
        sites = self._sites(workload.kernel)
        return Benchmark(workload.kernel, workload.space, self._workers, self._limits, sites, workload.modules, gauged)

    def open_benchmark(self, workload: Workload, kernel: Kernel) -> Benchmark:
        """A benchmark of ``kernel``, made of the workload's own, on the first of its devices."""
        sites = self._sites(workload.kernel)[:1]
        return Benchmark(kernel, ConfigSpace({}), self._workers, self._limits, sites, workload.modules)

    @property
    def _limits(self) -> Limits:
        return Limits(self.settings.compile_timeout, self.settings.run_timeout)

    def warm(self) -> None:
        """Get the processes ready that kernels on a GPU will need, where there is one; does not wait for them.

        Does nothing where it is not known soon whether there is one: to be called again then.
        """
        if self._is_warm or not all(find_spec(name) for name in ("torch", "triton")):
            return
        patience_s = 0.0 if "_lookup" in self.__dict__ else _PATIENCE_S
        if not self._lookup.is_known(patience_s):
            return
        self._is_warm = True
        if visible := self._lookup.visible:
            chosen = alike(self._lookup.free, visible[0])
            self._workers.warm([pinned(visible, 0, d) for d in chosen] if len(visible) > 1 else [{}])

    def _sites(self, kernel: Kernel) -> list[Site]:
        """Where the kernel may run: on its own device first, on others like it that nobody uses."""
        device = self.device(kernel)
        visible = self._lookup.visible if kernel.clock == "cuda" else []
        own = device_of(visible, device.uuid)
        if own is None or not kernel.isolated or len(visible) == 1:
            return [Site({}, DeviceTurn(own.uuid if own else device.uuid or device.name))]
        chosen = alike(self._lookup.free, own)
        return [Site(pinned(visible, own.index, d), DeviceTurn(d.uuid)) for d in chosen]

    def gpu_of(self, device: DeviceInfo) -> str:
        """The UUID of the GPU that has the clocks of ``device``, which may be a part of it; "" where it is unknown."""
        own = device_of(self._lookup.visible, device.uuid)
        return parent_uuid(device.uuid) if own is None else own.parent or own.uuid

    @cached_property
    def _lookup(self) -> Lookup:
        """Begun once, before there are processes of our own on any device."""
        return Lookup(environment())

    @cached_property
    def recorded(self) -> Mapping[str, str]:
        """Facts for the record of a baseline."""
        commit = head(self.settings.root) if self._is_versioned else {}
        return {"date": datetime.now(UTC).date().isoformat(), **commit}

    def environment(self, device: DeviceInfo) -> Mapping[str, str]:
        """What may differ between comparable measurements."""
        return {**device.soft, **{k: v for k, v in versions().items() if k in _TOOLCHAIN}}

    def close(self) -> None:
        """End all worker processes."""
        self._tuner.close()
        self.bases.close()
        self._workers.close()


class _Evaluator:
    """One kernel's way from workload to evaluation."""

    def __init__(self, session: Session, workload: Workload, earlier: Evaluation | None = None) -> None:
        """``earlier`` is what was found out before, of a kernel that is measured again."""
        self._session, self._workload, self._settings = session, workload, session.settings
        self._earlier = earlier
        self._device = session.device(workload.kernel)
        self._place = BaselinePlace(session.settings, workload, self._device.name)
        self._baseline = self._place.stored()

    def evaluate(self) -> Evaluation:
        bench: Benchmark | None = None
        try:
            bench = self._session.benchmark(self._workload)
            bench.begin(timed=self._settings.gating)  # goes on while the first configs are chosen and compiled
            if not self._settings.gating:
                return self._run_once(bench)
            self._session.bases.prepare(self._workload)
            choice = self._choice(bench)
            bench.start()
            if bench.instrument:
                self._session.instruments[self._workload.kernel.clock] = bench.instrument
            return self._gated(bench, choice)
        except KernelError as error:
            return Evaluation(self._outcome(None, verdicts.broken(self._workload.name, str(error))))
        finally:
            if bench is not None:
                bench.close()

    def _choice(self, bench: Benchmark) -> Choice:
        """The config to judge: found before in this process, else known, else searched for."""
        earlier = self._earlier
        if earlier is not None and earlier.config is not None:
            return Choice(earlier.config, earlier.outcome.search, earlier.trials)
        if earlier is not None or not self._settings.searching or self._settings.autotune_effort == "none":
            return best_known(self._workload, self._baseline, self._session.cache)
        return self._session.tuner.tuned(self._workload, bench, self._device.facts)

    def _run_once(self, bench: Benchmark) -> Evaluation:
        choice = best_known(self._workload, self._baseline, self._session.cache)
        trial = bench.check(_known(choice))
        verdict = verdicts.checked() if trial.ok else verdicts.unusable(self._workload.name, [trial])
        return self._evaluation(bench, choice if trial.ok else replace(choice, config=None), verdict)

    def _gated(self, bench: Benchmark, choice: Choice) -> Evaluation:
        name = self._workload.name
        if choice.failure:
            return self._evaluation(bench, choice, verdicts.broken(name, choice.failure))
        if choice.config is None:
            return self._evaluation(bench, choice, verdicts.unusable(name, choice.trials))
        if not (trial := bench.check(choice.config)).ok:
            return self._evaluation(bench, replace(choice, config=None), verdicts.unusable(name, [trial]))
        gate = self._gate(bench, choice.config)
        measured = gate.measure(bench, choice.config)
        verdict = gate.judged(measured)
        evaluation = self._evaluation(bench, replace(choice, config=measured.config), verdict)
        outcome = replace(
            evaluation.outcome,
            latency_ms=measured.latency_ms,
            reference_ms=measured.reference_ms,
            method=gate.contract.method,
            baseline=gate.row(bench, measured, verdict),
            previous_ms=gate.previous_ms(measured),
            young=gate.young(verdict),
            self_test=self._self_tested(gate, measured.config),
        )
        outcome = replace(outcome, warnings=(*outcome.warnings, *self._session.take_warnings()))
        return replace(evaluation, outcome=outcome, verdict_at=partial(gate.judged, measured))

    def _gate(self, bench: Benchmark, config: Config) -> Gate:
        wanted = "" if self._baseline is None else self._baseline.contract.get(judging.METHOD, "")
        method = bench.method(config, wanted)  # the baseline's where it works: else they can't be compared
        session = self._session
        return Gate(
            self._settings,
            self._workload,
            self._place,
            self._baseline,
            self._contract(bench, method),
            session.bases,
            session.recorded,
            self._command,
        )

    def _self_tested(self, gate: Gate, config: Config) -> Mapping[str, Any]:
        if self._settings.gate_self_test is None:
            return {}
        if self._earlier is not None:
            return self._earlier.outcome.self_test
        decisions, say, name = self._settings.gate_self_test, self._session.say, self._workload.name
        try:
            with closing(self._session.open_benchmark(self._workload, SlowedKernel(self._workload.kernel))) as bench:
                found = self_test(
                    bench, config, gate.contract, gate.policy, decisions, lambda text: say(f"{name}: {text}")
                )
        except KernelError as error:
            self._session.warn(f"{name}: gate self-test: {error}")
            return {}
        return found.to_json()

    def _evaluation(self, bench: Benchmark, choice: Choice, verdict: VerdictSummary) -> Evaluation:
        outcome = self._outcome(choice, verdict)
        artifact = None if choice.config is None else bench.artifact(choice.config)
        return Evaluation(outcome, choice.trials, choice.config, artifact, lambda *_: verdict)

    def _outcome(self, choice: Choice | None, verdict: VerdictSummary) -> Outcome:
        workload, baseline = self._workload, self._baseline
        return Outcome(
            file=workload.file,
            name=workload.name,
            kind=workload.kernel.kind,
            device=workload.device_name,
            clock=workload.kernel.clock,
            fingerprint=workload.fingerprint,
            config=dict(choice.config) if choice and choice.config is not None else None,
            latency_ms=None,
            reference_ms=None,
            search=choice.summary if choice else verdicts.NO_SEARCH,
            verdict=verdict,
            previous_ms=baseline.latency_ms if baseline is not None else None,
            baseline_file=self._place.shown,
            trials=tuple(t.to_json() for t in choice.trials) if choice else (),
            warnings=self._session.take_warnings(),
            instrument=dict(self._session.instruments.get(workload.kernel.clock, {})),
        )

    def _contract(self, bench: Benchmark, method: str) -> judging.Contract:
        clock: Clock = self._workload.kernel.clock
        reference = self._workload.kernel.program().reference
        facts = {
            **self._device.hard,
            "method": method,
            "inputs": self._workload.inputs_digest[:_DIGEST],
            "reference": "none" if reference is None else source_digest([reference])[:_DIGEST],
        }
        gpu = self._session.gpu_of(self._device) if clock == "cuda" else ""
        watch = partial(Guard, clock, lambda: bench.pid, environment(), gpu)
        return judging.Contract(facts, clock, watch, self._session.environment(self._device))

    @property
    def _command(self) -> str:
        """This run for one file, as it would be typed here."""
        settings = self._settings
        folder, against = settings.baseline_dir, settings.against
        options = [] if folder is None else [f"--baseline-dir={os.path.relpath(folder)}"]
        options += [] if against is None else [f"--against={against}"]
        file = os.path.relpath(settings.root / self._workload.file)
        return shlex.join(["pytest", file, f"--autotune={settings.autotune}", *options])


def _known(choice: Choice) -> Config:
    assert choice.config is not None, "best_known always names a config"
    return choice.config
