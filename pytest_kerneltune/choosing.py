"""Which config a kernel runs with: the best one known, or the one that a search finds."""

from __future__ import annotations

import platform
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.cache import Entry, Flight, TuningCache
from pytest_kerneltune.driver import Driver, Progress, SearchRun, pick_winner, search_rng, stages
from pytest_kerneltune.errors import KernelError, LLMError, SpaceError
from pytest_kerneltune.family import Member
from pytest_kerneltune.outcome import SearchSummary
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.search import Context, Effort, Related, Search, create, search_class
from pytest_kerneltune.search.guided import MODEL
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Budget, Config, Trial
from pytest_kerneltune.versions import versions
from pytest_kerneltune.workload import Workload

if TYPE_CHECKING:
    from pytest_kerneltune.llm import Call, LanguageModel

MODEL_COMPILE_S = 15.0
"""Seconds that compiling a config may take which a language model proposed, unless set otherwise: models like big
tiles, and what compiles for longer is seldom fast."""

_MOST_PARALLEL = 8  # configs compiled at once that a search is told of: choosing more at a time costs it knowledge


@dataclass(frozen=True)
class Choice:
    """A kernel's config (None: nothing works), how it was found, and the trials that led to it."""

    config: Config | None
    summary: SearchSummary
    trials: tuple[Trial, ...] = ()


def best_known(workload: Workload, baseline: Baseline | None, cache: TuningCache) -> Choice:
    """The baseline's config, else the cache's winner, else the default; nothing is measured."""
    if baseline is not None and workload.space.contains(baseline.config):
        return Choice(workload.space.canonical(baseline.config), SearchSummary("baseline"))
    entry = cache.lookup(workload.fingerprint)
    if entry is not None and entry.winner is not None and workload.space.contains(entry.winner):
        return _from_cache(workload, entry)
    return Choice(workload.space.default, SearchSummary("default"))


@dataclass
class Tuner:
    """Finds configs by searching, through the shared cache: of all processes that want a kernel, one tunes it.

    ``progress`` is told the kernel's name and where its tuning stands; ``say`` gets single lines for the user.
    """

    settings: Settings
    cache: TuningCache
    progress: Callable[[str, Progress, Budget], None] = lambda *_: None
    say: Callable[[str], None] = lambda _: None
    _messages: list[str] = field(default_factory=list)

    def tuned(self, workload: Workload, bench: Benchmark, hardware: Sequence[str]) -> Choice:
        """The cache's winner if it satisfies this request and still works, else that of a search."""
        if (hit := self._hit(workload, bench, self.cache.lookup(workload.fingerprint))) is not None:
            return hit

        def waiting() -> None:
            self.say(f"{workload.name}: another process is tuning this kernel; waiting for its result")

        with self.cache.flight(workload.fingerprint, waiting) as flight:
            hit = self._hit(workload, bench, flight.entry)
            return hit if hit is not None else self._search(workload, bench, hardware, flight)

    def close(self) -> None:
        if "model" in self.__dict__ and self.model is not None:
            self.model.close()

    @cached_property
    def model(self) -> LanguageModel | None:
        """The language model of this run; None, with a message, where none can be used."""
        from pytest_kerneltune.llm import LLMOptions, connect

        llm = self.settings.llm
        options = LLMOptions.from_settings(llm.given, llm.provider_variables)
        if self.settings.autotune_budget is not None:  # a search that waits for a reply spends its time
            limit = min(options.request_timeout_s, self.settings.autotune_budget)
            options = replace(options, request_timeout_s=limit)
        try:
            return connect(options)
        except LLMError as error:
            self._messages.append(f"language model skipped: {error}")
            return None

    @property
    def _budget(self) -> Budget:
        return Budget(self.settings.autotune_budget, self.settings.autotune_configs)

    @property
    def _effort(self) -> Effort:
        return Effort(self.settings.autotune_effort)

    def _hit(self, workload: Workload, bench: Benchmark, entry: Entry | None) -> Choice | None:
        if self.settings.autotune_force or entry is None or not entry.satisfies(self._effort, self._budget):
            return None
        choice = _from_cache(workload, entry)
        # The winner of another toolchain or driver may no longer work: then the kernel is tuned anew.
        return choice if choice.config is not None and bench.check(choice.config).ok else None

    def _search(self, workload: Workload, bench: Benchmark, hardware: Sequence[str], flight: Flight) -> Choice:
        self._messages.clear()
        search, asked = self._created(workload, hardware), len(self._calls)
        prior = self._prior(workload, flight)
        rng = search_rng(self.settings.autotune_seed, workload.name)
        run = self._driver(workload, bench, flight).drive(search, rng, prior)
        winner = _winner(bench, run)
        flight.store(self._entry(workload, run, winner, _unrepeated(workload, flight, run)))
        self._messages += [*self._model_messages(search, self._calls[asked:]), *_origins(search, prior)]
        return Choice(winner, self._summary(run), tuple(run.trials))

    def _created(self, workload: Workload, hardware: Sequence[str]) -> Search:
        """The search that this run asks for, as the user limits it."""
        search = create(str(self.settings.autotune), self._effort, self._context(workload, hardware))
        rounds = self.settings.llm.max_rounds
        if rounds is None or not hasattr(search, "with_rounds"):
            return search
        limited: Search = search.with_rounds(rounds)
        return limited

    def _prior(self, workload: Workload, flight: Flight) -> list[Trial]:
        """What earlier runs measured of this very kernel, as far as it is to be believed."""
        if self.settings.autotune_force:
            return []
        known = flight.entry.trials if flight.entry and flight.entry.winner else ()
        return _usable(workload, [*known, *flight.interrupted])

    def _driver(self, workload: Workload, bench: Benchmark, flight: Flight) -> Driver:
        return Driver(
            bench,
            workload.space,
            self._budget,
            flight.record,
            lambda p: self.progress(workload.name, p, self._budget),
            {MODEL: self.settings.llm.compile_timeout_s or MODEL_COMPILE_S},
        )

    def _context(self, workload: Workload, hardware: Sequence[str]) -> Context:
        model = self._model_if_wanted()
        return Context(
            configs=workload.configs,
            model=model.submit if model is not None else None,
            subject=workload.subject(hardware, self.settings.llm.send_source is not False),
            related=self._related(workload),
            # What runs in this process is not compiled.
            parallel=min(_MOST_PARALLEL, self.settings.compile_jobs) if workload.kernel.isolated else 1,
            second_stage=self.settings.llm.second_stage,
        )

    def _model_if_wanted(self) -> LanguageModel | None:
        """The model, if the search asks one; where there is none, the messages say why, for every kernel."""
        if not getattr(search_class(str(self.settings.autotune)), "uses_model", False):
            return None
        if self.model is None and not self._messages:
            self.__dict__.pop("model")
        return self.model

    def _related(self, workload: Workload) -> Related:
        own = Member(workload.fingerprint, workload.name, workload.description.inputs)
        known = (tuple(_usable(workload, entry.trials)) for entry in self.cache.related(workload.family, own))
        return tuple(trials for trials in known if trials)

    @property
    def _calls(self) -> list[Call]:
        model = self.__dict__.get("model")
        return model.calls if model is not None else []

    def _model_messages(self, search: Search, calls: Sequence[Call]) -> list[str]:
        """What became of the language model, if the search was to ask one: never silence."""
        model = self.__dict__.get("model")
        if model is None or not getattr(search, "uses_model", False):
            return []
        failed = [f"language model skipped: {call.outcome}" for call in calls if not call.answered]
        if not calls:
            return [f"language model skipped: {model.label} had not replied when the search ended"]
        return failed or [f"language model: {model.label}"]

    def _entry(self, workload: Workload, run: SearchRun, winner: Config | None, unrepeated: Sequence[Trial]) -> Entry:
        return Entry(
            fingerprint=workload.fingerprint,
            kernel=workload.name,
            trials=(*unrepeated, *run.trials),
            winner=winner,
            algorithm=str(self.settings.autotune),
            effort=self._effort,
            seed=self.settings.autotune_seed,
            finished=run.complete,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            budget_seconds=self._budget.seconds,
            budget_configs=self._budget.configs,
            origin={"host": _host(), "device": workload.device_name, **versions()},
            family=workload.family,
            inputs=workload.description.inputs,
        )

    def _summary(self, run: SearchRun) -> SearchSummary:
        return SearchSummary(
            "search",
            algorithm=str(self.settings.autotune),
            effort=self._effort,
            seed=self.settings.autotune_seed,
            attempts=len(run.trials),
            failures=_failures(run.trials),
            seconds=run.seconds,
            stopped=run.stopped,
            stages=stages(run),
            messages=tuple(self._messages),
        )


def _from_cache(workload: Workload, entry: Entry) -> Choice:
    try:
        config = None if entry.winner is None else workload.space.canonical(entry.winner)
    except SpaceError:
        config = None
    summary = SearchSummary(
        "cache",
        algorithm=entry.algorithm,
        effort=entry.effort,
        seed=entry.seed,
        attempts=len(entry.trials),
        failures=_failures(entry.trials),
    )
    return Choice(config, summary, entry.trials)


def _usable(workload: Workload, trials: Sequence[Trial]) -> list[Trial]:
    """Each config of the space once, its last trial; in the order in which they were measured."""
    space = workload.space
    usable = [replace(t, config=space.canonical(t.config)) for t in trials if space.contains(t.config)]
    return list({space.key(t.config): t for t in usable}.values())


def _unrepeated(workload: Workload, flight: Flight, run: SearchRun) -> list[Trial]:
    """Earlier trials of configs that ``run`` did not come across."""
    measured = {workload.space.key(t.config) for t in run.trials}
    earlier = [*(flight.entry.trials if flight.entry else ()), *flight.interrupted]
    return [t for t in _usable(workload, earlier) if workload.space.key(t.config) not in measured]


def _origins(search: Search, prior: Sequence[Trial]) -> list[str]:
    """What the search knew when it began."""
    messages = [f"continued from {len(prior)} configs that an earlier run measured"] if prior else []
    used: Related = getattr(search, "used_related", ())
    if related := [trials for trials in used if any(t.ok for t in trials)]:
        kernels = "1 related kernel" if len(related) == 1 else f"{len(related)} related kernels"
        messages.append(f"started from {sum(map(len, related))} configs of {kernels}")
    return messages


def _winner(bench: Benchmark, run: SearchRun) -> Config | None:
    """The best config by an interleaved comparison of the finalists; one that fails now drops out."""
    trials = list(run.trials)
    while any(t.ok for t in trials):
        try:
            config = pick_winner(bench, trials)[0][0]
            if bench.check(config).ok:  # an earlier run's trial may be of another driver
                return config
            trials = [t for t in trials if t.config != config]
        except KernelError:
            best = min((t for t in trials if t.ok), key=lambda t: t.latency_ms)
            broken = [
                t for t in trials if t.ok and t.latency_ms <= 2 * best.latency_ms and not bench.check(t.config).ok
            ]
            trials = [t for t in trials if t not in (broken or [best])]
    return None


def _failures(trials: Sequence[Trial]) -> dict[str, int]:
    return dict(Counter(str(t.status.value) for t in trials if not t.ok))


def _host() -> str:
    return sha256(f"{socket.gethostname()}:{platform.machine()}".encode()).hexdigest()[:12]
