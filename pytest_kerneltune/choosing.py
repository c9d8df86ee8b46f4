"""Which config a kernel runs with: the best one known, or the one that a search finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pytest_kerneltune.adviser import Adviser, Consultation
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.cache import Entry, Flight, Run, TuningCache
from pytest_kerneltune.cache.family import Member
from pytest_kerneltune.disk.leases import Owner
from pytest_kerneltune.driver import Driver, Progress, SearchRun, search_rng, stages
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.finals import Placed, play_finals
from pytest_kerneltune.keeping import Choice, entry_of, failures, from_cache, host_hash, label, usable
from pytest_kerneltune.outcome import SearchSummary
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.search import Context, Effort, Related, RelatedTrials, Search, asks_model, create
from pytest_kerneltune.search.guided import MODEL
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Budget, Trial
from pytest_kerneltune.versions import versions
from pytest_kerneltune.workload import Workload

MODEL_COMPILE_S = 15.0
"""Seconds that compiling a config may take which a language model proposed, unless set otherwise: models like big
tiles, and what compiles for longer is seldom fast."""

_MODEL_USED = "language model"  # in an entry's origin: which one answered
_UNASKED = (
    "language model not asked: the cache holds this kernel's result of a search without one (--autotune-force searches "
    "again)"
)
_MOST_PARALLEL = 8  # configs of a batch on host clocks: choosing more at a time costs knowledge
_LONG_WAIT_S = 10.0
_AHEAD = 2  # configs under way on a GPU beyond those that compile: one is timed, one waits for that


def best_known(workload: Workload, baseline: Baseline | None, cache: TuningCache) -> Choice:
    """The baseline's config, else the cache's winner, else the default; nothing is measured."""
    if baseline is not None and workload.space.contains(baseline.config):
        return Choice(workload.space.canonical(baseline.config), SearchSummary("baseline"))
    entry = cache.lookup(workload.fingerprint)
    if entry is not None and entry.winner is not None and workload.space.contains(entry.winner):
        return from_cache(workload, entry)
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
    _adviser: Adviser = field(init=False)

    def __post_init__(self) -> None:
        self._adviser = Adviser(self.settings)

    def tuned(self, workload: Workload, bench: Benchmark, hardware: Sequence[str]) -> Choice:
        """The cache's winner if it satisfies this request and still works, else that of a search."""

        def waiting(owner: Owner | None) -> None:
            self.say(f"{workload.name}: {owner or 'another process'} is tuning this kernel; waiting for its result")

        entry = self.cache.lookup(workload.fingerprint)
        start, waited_s = time.monotonic(), 0.0
        while (hit := self._hit(workload, bench, entry)) is None:
            with self.cache.flight(workload.fingerprint, waiting) as flight:
                waited_s = time.monotonic() - start
                if flight.entry == entry or not self._answers(workload, flight.entry):
                    return _after(waited_s, self._search(workload, bench, hardware, flight))
                entry = flight.entry  # checked when it is the next one's turn: who waits need not wait for that
        return _after(waited_s, hit)

    def close(self) -> None:
        self._adviser.close()

    @property
    def _effort(self) -> Effort:
        return Effort(self.settings.autotune_effort)

    def _answers(self, workload: Workload, entry: Entry | None) -> bool:
        """Whether what the cache holds may be all that is asked for."""
        if self.settings.autotune_force or entry is None:
            return False
        return entry.satisfies(self._effort, self._budget(workload))

    def _hit(self, workload: Workload, bench: Benchmark, entry: Entry | None) -> Choice | None:
        if entry is None or not self._answers(workload, entry):
            return None
        choice = from_cache(workload, entry)
        # The winner of another toolchain or driver may no longer work: then the kernel is tuned anew.
        if choice.config is None or not bench.check(choice.config).ok:
            return None
        unasked = self._asks_model and not any(run.origin.get(_MODEL_USED) for run in entry.runs)
        return replace(choice, summary=replace(choice.summary, messages=(_UNASKED,))) if unasked else choice

    def _search(self, workload: Workload, bench: Benchmark, hardware: Sequence[str], flight: Flight) -> Choice:
        bench.spread()
        consultation = self._adviser.consultation() if self._asks_model else None
        search = self._created(self._context(workload, hardware, consultation))
        prior = self._prior(workload, flight)
        began, start = datetime.now(UTC), time.monotonic()
        flight.begin(self._run(workload))
        run = self._driven(workload, bench, flight, search, prior)
        engine = bench.account.between(start, time.monotonic())
        finalists = [] if run.error else _finals(bench, run)
        if not (finalists or run.error) and any(t.ok for t in prior):
            self.say(f"{workload.name}: no config that worked for an earlier run works now; tuning it anew")
            here, prior = run.trials[len(prior) :], []
            run = self._driven(workload, bench, flight, search, here)
            finalists = [] if run.error else _finals(bench, run)
        winner = finalists[0].config if finalists else None
        if not run.error:
            found = replace(self._run(workload, run, consultation), trials=tuple(run.trials[len(prior) :]))
            flight.store(self._kept(workload, bench, entry_of(workload, found, finalists), flight.entry))
        summary = replace(
            self._summary(run),
            messages=tuple(_origins(search, prior)),
            began=began.isoformat(timespec="milliseconds"),
            engine=engine,
        )
        if consultation is not None:
            said = (*consultation.messages(run), *summary.messages)
            summary = replace(summary, messages=said, model=consultation.summary(workload.space, run, winner))
            if run.counts.get("valid") == 0:
                consultation.forget()  # what was of no use once is not to be repeated from the reply cache
        return Choice(winner, summary, tuple(run.trials), run.error)

    def _driven(
        self, workload: Workload, bench: Benchmark, flight: Flight, search: Search, prior: Sequence[Trial]
    ) -> SearchRun:
        rng = search_rng(self.settings.autotune_seed, workload.name)
        return self._driver(workload, bench, flight).drive(search, rng, prior)

    def _kept(self, workload: Workload, bench: Benchmark, found: Entry, known: Entry | None) -> Entry:
        """``found``, with the winner that is known where that may not be replaced: where nothing works here, but may do
        elsewhere, and where a larger search made it than this one, which did not look at it."""
        config = from_cache(workload, known).config if known is not None else None
        if known is None or config is None:
            return found
        is_smaller = self.settings.autotune_force and found.reach < known.reach
        if found.winner is not None and not (is_smaller and bench.check(config).ok):
            return found
        return replace(found, winner=known.winner, verification=known.verification)

    @property
    def _asks_model(self) -> bool:
        return asks_model(str(self.settings.autotune))

    def _budget(self, workload: Workload) -> Budget:
        settings = self.settings
        target = settings.autotune_target if workload.target_ms is None else workload.target_ms
        return Budget(settings.autotune_budget, settings.autotune_configs, target)

    def _created(self, context: Context) -> Search:
        """The search that this run asks for, as the user limits it."""
        search = create(str(self.settings.autotune), self._effort, context)
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
        target = self._budget(workload).target_ms
        found = usable(workload, [*known, *flight.interrupted])
        # What would end the search has to be measured in this run: it may be of another driver.
        return [t for t in found if target is None or not (t.ok and t.latency_ms <= target)]

    def _driver(self, workload: Workload, bench: Benchmark, flight: Flight) -> Driver:
        budget = self._budget(workload)
        return Driver(
            bench,
            workload.space,
            budget,
            flight.record,
            lambda p: self.progress(workload.name, p, budget),
            {MODEL: self.settings.llm.compile_timeout_s or MODEL_COMPILE_S},
        )

    def _context(self, workload: Workload, hardware: Sequence[str], consultation: Consultation | None) -> Context:
        return Context(
            configs=workload.configs,
            model=None if consultation is None else consultation.port,
            subject=workload.subject(hardware, self.settings.llm.send_source is not False),
            related=self._related(workload),
            parallel=self._parallel(workload),
            second_stage=self.settings.llm.second_stage,
            fallback=self._adviser.fallback,
            max_configs=self.settings.autotune_configs,
        )

    def _parallel(self, workload: Workload) -> int:
        """How many configs are worth having under way at once."""
        if not workload.kernel.isolated:  # what runs in this process is not compiled
            return 1
        jobs = self.settings.compile_jobs
        return jobs + _AHEAD if workload.kernel.clock == "cuda" else min(_MOST_PARALLEL, jobs)

    def _related(self, workload: Workload) -> Related:
        own = Member(workload.fingerprint, workload.name, workload.description.inputs, device=workload.device_name)
        known = (
            RelatedTrials(usable(workload, entry.trials), label(entry, workload.device_name))
            for entry in self.cache.related(workload.family, own)
        )
        return tuple(trials for trials in known if trials)

    def _run(self, workload: Workload, run: SearchRun | None = None, consultation: Consultation | None = None) -> Run:
        """What this run's search is or, where it has ended as ``run``, was; without trials."""
        asked = run is not None and consultation is not None and run.counts.get("valid")
        model = {_MODEL_USED: consultation.label} if consultation is not None and asked else {}
        budget = self._budget(workload) if run is not None else Budget()  # one that is killed covers no budget
        if run is not None and run.on_target:  # it ended early because it was fast enough, and tried no more than this
            budget = replace(budget, configs=len(run.trials))
        return Run(
            algorithm=str(self.settings.autotune),
            effort=self._effort,
            seed=self.settings.autotune_seed,
            finished=run is not None and run.complete,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            budget_seconds=budget.seconds,
            budget_configs=budget.configs,
            origin={"host": host_hash(), "device": workload.device_name, **versions(), **model},
        )

    def _summary(self, run: SearchRun) -> SearchSummary:
        return SearchSummary(
            "search",
            algorithm=str(self.settings.autotune),
            effort=self._effort,
            seed=self.settings.autotune_seed,
            attempts=len(run.trials),
            failures=failures(run.trials),
            seconds=run.seconds,
            stopped=run.stopped,
            stages=stages(run),
        )


def _after(waited_s: float, choice: Choice) -> Choice:
    """``choice`` with a remark on the wait for another process, where that was long."""
    if waited_s < _LONG_WAIT_S:
        return choice
    remark = f"waited {waited_s:.0f} s for another process that tuned this kernel"
    return replace(choice, summary=replace(choice.summary, messages=(*choice.summary.messages, remark)))


def _origins(search: Search, prior: Sequence[Trial]) -> list[str]:
    """What the search knew when it began."""
    configs = "1 config" if len(prior) == 1 else f"{len(prior)} configs"
    messages = [f"continued from {configs} that an earlier run measured"] if prior else []
    used: Related = getattr(search, "used_related", ())
    if related := [trials for trials in used if any(t.ok for t in trials)]:
        kernels = "1 related kernel" if len(related) == 1 else f"{len(related)} related kernels"
        messages.append(f"started from {sum(map(len, related))} configs of {kernels}")
    return messages


def _finals(bench: Benchmark, run: SearchRun) -> list[Placed]:
    """The best configs by an interleaved comparison, the winner first; one that fails now drops out."""
    trials = list(run.trials)
    while any(t.ok for t in trials):
        try:
            placed = play_finals(bench, trials)
            if bench.check(placed[0].config).ok:  # an earlier run's trial may be of another driver
                return placed
            trials = [t for t in trials if t.config != placed[0].config]
        except KernelError:
            best = min((t for t in trials if t.ok), key=lambda t: t.latency_ms)
            broken = [
                t for t in trials if t.ok and t.latency_ms <= 2 * best.latency_ms and not bench.check(t.config).ok
            ]
            trials = [t for t in trials if t not in (broken or [best])]
    return []
