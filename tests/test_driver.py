"""The driver's loop, with searches written to be awkward, on kernels that really run."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from pytest_kerneltune import PythonKernel, choice, integer
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.driver import (
    Driver,
    Progress,
    SearchRun,
    checked_configs,
    search_rng,
    stages,
)
from pytest_kerneltune.errors import KernelError, LLMUnavailable, SpaceError, UsageError
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.guided import LLMGuidedSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import ScriptedModel
from pytest_kerneltune.trial import Batch, Budget, Config, Status, Trial, best_trial

SPACE = ConfigSpace({"n": integer(0, 999)})
RNG = random.Random(0)


def work(n: int) -> int:
    """Takes longer the larger ``n`` is; 13 fails, 17 is wrong."""
    if n == 13:
        raise ValueError("unlucky")
    sum(range(2000 * (n + 1)))
    return 2 if n == 17 else 1


def bench(run: Callable[..., Any] = work, space: ConfigSpace = SPACE) -> Benchmark:
    return Benchmark(PythonKernel(run, reference=lambda: 1), space, Workers(1), Limits(run_s=5))


@dataclass
class Scripted:
    """Proposes ``batches``, one after the other, and keeps what it is sent."""

    batches: Sequence[Sequence[Config]]
    sent: list[list[Trial]] = field(default_factory=list)
    prior: Sequence[Trial] = ()
    closed: bool = False

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        raise NotImplementedError

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        self.prior = prior
        try:
            for batch in self.batches:
                self.sent.append(list((yield batch)))
        finally:
            self.closed = True


class Endless(Scripted):
    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        try:
            while True:
                for batch in self.batches:
                    self.sent.append(list((yield batch)))
        finally:
            self.closed = True


def ns(*values: int) -> list[Config]:
    return [{"n": n} for n in values]


def found(trials: Sequence[Trial]) -> list[int]:
    return [t.config["n"] for t in trials]


# Exchanging configs for trials


def test_trials_come_back_in_order_failures_included() -> None:
    search = Scripted([ns(3, 13, 1), ns(17, 2)])
    run = Driver(bench(), SPACE).drive(search, RNG)
    assert [found(sent) for sent in search.sent] == [[3, 13, 1], [17, 2]]
    assert [t.status for t in run.trials] == [Status.OK, Status.RUNTIME_ERROR, Status.OK, Status.WRONG, Status.OK]
    assert [t.latency_ms == math.inf for t in run.trials] == [False, True, False, True, False]
    assert run.trials == [t for sent in search.sent for t in sent]
    assert run.stopped == "search ended"
    assert run.complete
    assert run.seconds > 0


def test_a_config_proposed_twice_is_answered_from_memory() -> None:
    calls: list[int] = []

    def run(n: int) -> int:
        calls.append(n)
        return 1

    search = Scripted([ns(1, 2, 1), ns(2, 3, 2)])
    result = Driver(bench(run), SPACE).drive(search, RNG)
    assert [found(sent) for sent in search.sent] == [[1, 2, 1], [2, 3, 2]]
    assert search.sent[0][0] is search.sent[0][2]
    assert search.sent[1][0] is search.sent[0][1]
    assert found(result.trials) == [1, 2, 3]
    assert list(dict.fromkeys(calls)) == [1, 2, 3]


def test_equal_configs_in_other_words_are_one_config() -> None:
    space = ConfigSpace({"order": choice((1, 2), (2, 1)), "n": integer(0, 9)})
    seen: list[Any] = []

    def run(order: Any, **_: int) -> int:
        seen.append(order)
        return 1

    search = Scripted([[{"order": (1, 2), "n": 1}, {"n": 1, "order": [1, 2]}]])
    result = Driver(bench(run, space), space).drive(search, RNG)
    assert len(result.trials) == 1
    assert len(search.sent[0]) == 2
    assert set(map(type, seen)) == {tuple}


@pytest.mark.parametrize(
    ("config", "text"),
    [({"n": 5000}, "5000"), ({"m": 1}, "m, n"), ({}, "n"), ({"n": 1, "x": 2}, "x"), ({"n": "1"}, "'1'"), (3, "3")],
)
def test_a_config_outside_the_space_is_the_searchs_error(config: Any, text: str) -> None:
    search = Scripted([ns(1), [config]])
    recorded: list[Trial] = []
    with pytest.raises(SpaceError, match=f"the search proposed a config that is not in the space: .*{text}"):
        Driver(bench(), SPACE, record=recorded.append).drive(search, RNG)
    assert search.closed
    assert found(recorded) == [1]


def test_what_a_constraint_refuses_is_outside_the_space() -> None:
    space = ConfigSpace({"n": integer(0, 9)}, where=lambda c: c["n"] != 4)
    with pytest.raises(SpaceError, match="where= refuses"):
        Driver(bench(space=space), space).drive(Scripted([ns(4)]), RNG)


def test_a_search_that_fails_fails_the_run_and_is_closed() -> None:
    class Failing(Scripted):
        def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
            try:
                yield ns(1)
                raise ZeroDivisionError("in the search")
            finally:
                self.closed = True

    search = Failing([])
    with pytest.raises(ZeroDivisionError):
        Driver(bench(), SPACE).drive(search, RNG)
    assert search.closed


def test_prior_trials_are_known_and_first() -> None:
    prior = (Trial({"n": 5}, latency_ms=1e-9), Trial({"n": 6}, Status.CRASH))
    search = Scripted([ns(5, 7, 6)])
    run = Driver(bench(), SPACE).drive(search, RNG, prior)
    assert search.prior == prior
    assert search.sent[0][0] is prior[0]
    assert search.sent[0][2] is prior[1]
    assert found(run.trials) == [5, 6, 7]


# Searches that never end


@pytest.mark.parametrize("batches", [[[]], [ns(1)], [ns(1, 2), [], ns(2)], [Batch([], stage="empty")]])
def test_a_search_that_proposes_nothing_new_for_ever_is_ended(batches: Sequence[Sequence[Config]]) -> None:
    search = Endless(batches)
    run = Driver(bench(), SPACE).drive(search, RNG)
    assert run.stopped == "the search proposed nothing new"
    assert not run.complete
    assert search.closed


def test_some_batches_with_nothing_new_do_not_end_a_search() -> None:
    run = Driver(bench(), SPACE).drive(Scripted([ns(1), [], ns(1), [], [], ns(1), ns(2)]), RNG)
    assert found(run.trials) == [1, 2]
    assert run.complete


def test_a_search_without_a_first_batch_has_ended() -> None:
    run = Driver(bench(), SPACE).drive(Scripted([]), RNG)
    assert (run.trials, run.stopped) == ([], "search ended")


# The budget


@pytest.mark.parametrize(
    ("budget", "prior", "expected"),
    [
        (3, 0, [0, 1, 2]),
        (4, 0, [0, 1, 2, 3]),
        (1, 0, [0]),
        (4, 2, [0, 1]),
        (2, 2, []),
        (2, 5, []),
        (99, 0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_budget_of_configs_is_exact_and_counts_failures_and_earlier_attempts(
    budget: int, prior: int, expected: list[int]
) -> None:
    earlier = [Trial({"n": 900 + i}, Status.CRASH) for i in range(prior)]
    search = Scripted([ns(0, 1), ns(0, 2, 3), ns(4, 5)])
    run = Driver(bench(), SPACE, Budget(configs=budget)).drive(search, RNG, earlier)
    assert found(run.trials[prior:]) == expected
    assert search.closed
    assert run.complete == (budget == 99)
    assert run.complete or run.stopped == f"budget of {budget} configs"


def test_a_search_that_exactly_fits_its_budget_is_not_asked_again() -> None:
    search = Scripted([ns(0, 1), ns(2)])
    Driver(bench(), SPACE, Budget(configs=2)).drive(search, RNG)
    assert search.sent == []
    assert search.closed


def test_however_small_the_time_one_config_is_measured() -> None:
    search = Scripted([ns(*range(50))])
    run = Driver(bench(), SPACE, Budget(seconds=1e-9)).drive(search, RNG)
    assert found(run.trials) == [0]
    assert run.stopped == "time budget of 1e-09 s"


def test_nothing_is_measured_anew_where_the_time_is_up_and_something_is_known() -> None:
    prior = [Trial({"n": 5}, latency_ms=1.0)]
    run = Driver(bench(), SPACE, Budget(seconds=1e-9)).drive(Scripted([ns(1, 2)]), RNG, prior)
    assert found(run.trials) == [5]


def test_time_ends_a_batch_in_its_middle() -> None:
    def run(**_: int) -> int:
        time.sleep(0.02)
        return 1

    search = Scripted([ns(*range(500))])
    start = time.monotonic()
    result = Driver(bench(run), SPACE, Budget(seconds=0.5)).drive(search, RNG)
    assert 1 <= len(result.trials) < 500
    assert time.monotonic() - start < 15
    assert search.sent == []
    assert search.closed
    assert result.stopped == "time budget of 0.5 s"


def test_a_search_is_not_asked_for_more_when_its_time_is_up() -> None:
    """Asking may take long: a model is trained, or a language model waited for."""

    def run(**_: int) -> int:
        time.sleep(0.03)
        return 1

    search = Endless([ns(1), ns(2), ns(1)])
    result = Driver(bench(run), SPACE, Budget(seconds=0.02)).drive(search, RNG)
    assert search.sent == []
    assert result.stopped == "time budget of 0.02 s"


def test_time_ends_a_search_that_thinks_without_proposing() -> None:
    class Thinking(Scripted):
        def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
            yield ns(1)
            while True:
                time.sleep(0.1)
                self.sent.append(list((yield ns(1))))

    search = Thinking([])
    run = Driver(bench(), SPACE, Budget(seconds=0.3)).drive(search, RNG)
    assert run.stopped == "time budget of 0.3 s"
    assert len(search.sent) < 15


@pytest.mark.parametrize(
    ("target", "measured"), [(12.0, [30, 11]), (11.0, [30, 11]), (10.9, [30, 11, 5]), (1.0, [30, 11, 5])]
)
def test_a_search_ends_when_its_target_is_reached(target: float, measured: list[int]) -> None:
    search = Scripted([ns(30), ns(11), ns(5)])
    run = Driver(Machine(), SPACE, Budget(target_ms=target)).drive(search, RNG)
    assert found(run.trials) == measured
    assert run.complete == (target == 1.0)
    assert search.closed
    assert len(search.sent) == len(measured) - (target > 1.0)
    if target > 1.0:
        assert run.stopped == f"target latency of {target:g} ms reached"


def test_nothing_is_asked_or_measured_where_the_target_was_reached_before() -> None:
    search = Scripted([ns(30)])
    prior = [Trial({"n": 5}, latency_ms=0.25), Trial({"n": 6}, Status.WRONG)]
    run = Driver(Machine(), SPACE, Budget(target_ms=0.25)).drive(search, RNG, prior)
    assert (run.trials, run.stopped) == (prior, "target latency of 250 us reached")
    assert search.prior == (), "the search was not even begun"


def test_what_does_not_work_reaches_no_target() -> None:
    prior = [Trial({"n": 5}, Status.WRONG, latency_ms=0.1)]
    assert Driver(Machine(), SPACE, Budget(target_ms=0.25)).drive(Scripted([ns(1)]), RNG, prior).complete


def test_a_target_may_be_reached_by_timing_again() -> None:
    """10 read as 12 and 14 as 12.6: side by side, and on a scale between theirs, 10 is 10.5."""
    machine = Machine(speeds=[1.2, 0.9, 1.0])
    search = Scripted([ns(10), Batch(ns(14), retime=2), ns(7)])
    run = Driver(machine, SPACE, Budget(target_ms=11.0)).drive(search, RNG)
    assert found(run.trials) == [10, 14]
    assert run.on_target


# Recording


def test_each_trial_is_recorded_when_it_is_made_and_progress_follows() -> None:
    events: list[str] = []
    progress: list[Progress] = []

    def show(step: Progress) -> None:
        events.append("progress")
        progress.append(step)

    def run(n: int) -> int:
        if not events or events[-1] != f"run {n}":
            events.append(f"run {n}")
        return work(n)

    driver = Driver(bench(run), SPACE, record=lambda t: events.append(f"trial {t.config['n']}"), progress=show)
    driver.drive(Scripted([Batch(ns(40, 13), stage="first"), Batch(ns(1), stage="second")]), RNG)
    assert events[:6] == ["run 40", "trial 40", "progress", "run 13", "trial 13", "progress"]
    assert [(p.stage, p.tried, p.failed) for p in progress] == [("first", 1, 0), ("first", 2, 1), ("second", 3, 1)]
    assert progress[0].best_ms == progress[1].best_ms < math.inf
    assert progress[2].best_ms < progress[0].best_ms
    assert 0 <= progress[0].elapsed_s <= progress[2].elapsed_s


def test_what_was_recorded_survives_an_interrupt() -> None:
    def run(n: int) -> int:
        if n == 2:
            raise KeyboardInterrupt
        return 1

    recorded: list[Trial] = []
    search = Scripted([Batch(ns(0, 1, 2, 3), stage="it")])
    with pytest.raises(KeyboardInterrupt):
        Driver(bench(run), SPACE, record=recorded.append).drive(search, RNG)
    assert [(t.config["n"], t.stage) for t in recorded] == [(0, "it"), (1, "it")]
    assert search.closed


def test_stages_and_notes_are_told_apart() -> None:
    batches = [Batch(ns(3, 13), "random", "why not"), Batch(ns(2), "model"), Batch((), "model", "and then"), ns(1)]
    run = Driver(bench(), SPACE).drive(Scripted(batches), RNG)
    assert [t.stage for t in run.trials] == ["random", "random", "model", ""]
    summary = {s.stage: s for s in stages(run)}
    assert list(summary) == ["random", "model", ""]
    assert (summary["random"].configs, summary["random"].failed, summary["random"].note) == (2, 1, "why not")
    assert summary["model"].note == "and then"
    assert summary["random"].best_ms == run.trials[0].latency_ms
    failed = stages(SearchRun([Trial({"n": 1}, Status.CRASH, stage="x")]))
    assert (failed[0].best_ms, failed[0].failed) == (None, 1)


def test_counts_are_added_up_and_a_search_has_the_last_word() -> None:
    class Talkative(Scripted):
        def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
            yield Batch(ns(1), "model", counts={"proposed": 3, "new": 1})
            yield Batch(ns(2), "model", "second", counts={"proposed": 2, "valid": 1})
            return Batch((), "model", "third", counts={"proposed": 1})

    run = Driver(bench(), SPACE).drive(Talkative([]), RNG)
    assert run.counts == {"proposed": 6, "new": 1, "valid": 1}
    assert run.notes == [("model", "second"), ("model", "third")]
    assert run.complete


# Re-timing, on a machine that runs at any speed we like


@dataclass
class Machine:
    """Measures ``{"n": n}`` as n ms, times ``speeds[i]`` at the i-th call; a comparison is fair."""

    speeds: list[float] = field(default_factory=list)
    true: Mapping[int, float] = field(default_factory=dict)
    broken: frozenset[int] = frozenset()
    compared: list[list[int]] = field(default_factory=list)
    compile_limits: list[float | None] = field(default_factory=list)

    def measure(
        self,
        configs: Sequence[Config],
        best_ms: float,
        deadline: float,
        done: Callable[[Trial], None],
        compile_s: float | None,
        enough: int | None,
    ) -> list[Trial]:
        self.compile_limits.append(compile_s)
        trials = []
        for config in configs:
            speed = self.speeds.pop(0) if self.speeds else 1.0
            trials.append(Trial(config, latency_ms=speed * self._ms(config)))
            done(trials[-1])
        return trials

    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int) -> dict[str, list[float]]:
        self.compared.append([c["n"] for c in arms.values()])
        if any(c["n"] in self.broken for c in arms.values()):
            raise KernelError("one of them is broken by now")
        drift = [1.0 + i % 3 for i in range(blocks)]  # the whole machine wanders, as one
        return {name: [self._ms(config) * d for d in drift] for name, config in arms.items()}

    def _ms(self, config: Config) -> float:
        return float(self.true.get(config["n"], config["n"]))


def test_a_lucky_reading_is_corrected_before_the_search_hears_of_it() -> None:
    machine = Machine(speeds=[1.0, 0.5, 1.0])
    search = Scripted([ns(10), ns(12, 30)])
    run = Driver(machine, SPACE).drive(search, RNG)
    assert machine.compared == [[10, 12]]
    assert [t.latency_ms for t in search.sent[1]] == pytest.approx([12.0, 30.0])
    best = best_trial(run.trials)
    assert best is not None
    assert best.config == {"n": 10}


def test_a_machine_that_speeds_up_does_not_make_what_follows_better() -> None:
    """The incumbent was read while it was slow: the new one's latency is put on the incumbent's scale."""
    machine = Machine(speeds=[2.0, 1.0])
    run = Driver(machine, SPACE).drive(Scripted([ns(10), ns(9)]), RNG)
    assert [t.latency_ms for t in run.trials] == pytest.approx([20.0, 18.0])


def test_only_a_new_best_is_retimed() -> None:
    machine = Machine()
    Driver(machine, SPACE).drive(Scripted([ns(10, 8), ns(9), ns(7, 6), ns(6)]), RNG)
    assert machine.compared == [[8, 6]]


def test_nothing_is_retimed_when_the_time_is_up(advance: Callable[[float], None]) -> None:
    class Slow(Machine):
        def measure(self, *args: Any, **options: Any) -> list[Trial]:
            trials = super().measure(*args, **options)
            advance(60 if trials[0].config["n"] == 5 else 0)
            return trials

    machine = Slow()
    run = Driver(machine, SPACE, Budget(seconds=60)).drive(Scripted([ns(10), ns(5)]), RNG)
    assert found(run.trials) == [10, 5]
    assert machine.compared == []


def test_a_comparison_that_fails_leaves_the_reading() -> None:
    machine = Machine(broken=frozenset({5}))
    search = Scripted([ns(10), ns(5, 20)])
    Driver(machine, SPACE).drive(search, RNG)
    assert [t.latency_ms for t in search.sent[1]] == [5.0, 20.0]


def test_the_fastest_are_timed_side_by_side_where_a_batch_asks_for_it() -> None:
    """20 read as 11: at last all are on the scale of most."""
    machine = Machine(speeds=[1.0, 0.55, 1.0, 1.0, 1.0], true={12: 12.0})
    search = Scripted([ns(10, 20, 60), Batch(ns(40, 12), retime=4), ns(70)])
    run = Driver(machine, SPACE).drive(search, RNG)
    assert machine.compared == [[10, 20, 12, 40]]
    assert found(search.sent[1]) == [40, 12, 10, 20]
    assert [t.latency_ms for t in search.sent[1]] == pytest.approx([40, 12, 10, 20])
    assert [t.latency_ms for t in run.trials] == pytest.approx([10, 20, 60, 40, 12, 70])
    assert found(run.trials) == [10, 20, 60, 40, 12, 70]


def test_a_model_is_told_latencies_that_were_timed_again() -> None:
    """11 read as 5.5, a scale of its own among those that it is compared with."""
    replies = ['{"configs": [{"n": 12}, {"n": 20}, {"n": 30}]}', '{"configs": [{"n": 9}, {"n": "all"}]}']
    model = ScriptedModel(replies, pieces=99)
    machine = Machine(speeds=[1.0, 0.5])
    search = LLMGuidedSearch(model, configs=tuple(ns(11)), rounds=2, initial_random=0)
    run = Driver(machine, ConfigSpace({"n": integer(0, 999, default=16)})).drive(search, RNG)
    assert found(run.trials) == [16, 11, 12, 20, 30, 9]
    assert machine.compared == [[11, 12, 16, 20, 30], [11, 9]]
    assert [t.latency_ms for t in run.trials] == pytest.approx([16, 11, 12, 20, 30, 9])
    told = model.asked[1][-1].content
    assert all(f"{ms} ms" in told for ms in (11, 12, 16, 20, 30))
    assert run.counts == {"proposed": 5, "valid": 4, "new": 4}


def test_what_was_timed_again_is_what_is_answered_from_memory() -> None:
    machine = Machine(speeds=[1.0, 0.75])
    search = Scripted([ns(10), Batch(ns(16), retime=5), ns(16, 10)])
    Driver(machine, SPACE).drive(search, RNG)
    assert [t.latency_ms for t in search.sent[2]] == pytest.approx([14, 8.75]), "halfway between two scales"


def test_timing_again_does_not_make_the_fastest_ever_faster() -> None:
    machine = Machine(speeds=[1.0, 0.98, 1.0, 1.0, 1.0], true=dict.fromkeys(range(50), 10.0))
    batches = [Batch(ns(*range(5 * n, 5 * n + 5)), retime=5) for n in range(8)]
    run = Driver(machine, SPACE).drive(Scripted(batches), RNG)
    assert min(t.latency_ms for t in run.trials) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("batches", "broken"),
    [
        ([Batch(ns(10, 13), retime=1)], set()),
        ([Batch(ns(10), retime=5)], set()),
        ([Batch(ns(10, 12), retime=5)], {12}),
        ([Batch(ns(), retime=5)], set()),
    ],
)
def test_readings_stay_where_there_is_nothing_to_compare_or_it_fails(batches: list[Batch], broken: set[int]) -> None:
    machine = Machine(speeds=[0.5, 0.5], broken=frozenset(broken))
    search = Scripted([*batches, ns(90)])
    Driver(machine, SPACE).drive(search, RNG)
    assert [t.latency_ms for t in search.sent[0]] == [t.config["n"] / 2 for t in search.sent[0]]
    assert len(machine.compared) == len(broken)


def test_nothing_is_timed_again_when_the_search_will_hear_no_more() -> None:
    machine = Machine()
    Driver(machine, SPACE, Budget(configs=2)).drive(Scripted([Batch(ns(10, 12), retime=5)]), RNG)
    assert machine.compared == []


# Trials that come late


@dataclass
class Pipeline(Machine):
    """A machine on which the configs ``slow`` are known one call later than the others, or not before all are asked."""

    slow: frozenset[int] = frozenset()
    running: list[Config] = field(default_factory=list)
    asked: list[tuple[list[int], int | None]] = field(default_factory=list)

    def measure(
        self,
        configs: Sequence[Config],
        best_ms: float,
        deadline: float,
        done: Callable[[Trial], None],
        compile_s: float | None,
        enough: int | None,
    ) -> list[Trial]:
        self.asked.append(([c["n"] for c in configs], enough))
        if time.monotonic() > deadline:
            self.running = []
            return []
        late = [c for c in configs if c["n"] in self.slow and enough is not None]
        known = [*(c for c in configs if c not in late), *self.running]
        self.running = late
        if not known:
            known, self.running = self.running, []
        return super().measure(known, best_ms, deadline, done, compile_s, enough)


def test_a_search_goes_on_before_its_slowest_configs_are_known() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30, 20), "a", enough=2), Batch(ns(40), "b", enough=1), ns(50)])
    run = Driver(machine, SPACE).drive(search, RNG)
    assert [found(sent) for sent in search.sent] == [[10, 20], [40, 30], [50]]
    assert found(run.trials) == [10, 20, 40, 30, 50]
    assert [t.stage for t in run.trials] == ["a", "a", "b", "a", ""]
    assert [t.at_s for t in run.trials] == sorted(t.at_s for t in run.trials)


def test_what_is_late_when_a_search_ends_is_measured_all_the_same() -> None:
    machine = Pipeline(slow=frozenset({30}))
    run = Driver(machine, SPACE).drive(Scripted([Batch(ns(10, 30), enough=1)]), RNG)
    assert found(run.trials) == [10, 30]
    assert run.complete


def test_an_empty_batch_waits_for_what_is_late() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30), enough=1), Batch((), enough=1), Batch((), enough=1)])
    run = Driver(machine, SPACE).drive(search, RNG)
    assert [found(sent) for sent in search.sent] == [[10], [30], []]
    assert found(run.trials) == [10, 30]


def test_what_is_late_is_not_asked_for_twice() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30), enough=1), Batch(ns(30, 20), enough=1)])
    run = Driver(machine, SPACE).drive(search, RNG)
    assert [asked for asked, _ in machine.asked] == [[10, 30], [20]]
    assert [found(sent) for sent in search.sent] == [[10], [20, 30]]
    assert found(run.trials) == [10, 20, 30]


def test_what_is_late_counts_towards_the_budget_of_configs() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30), enough=1), Batch(ns(20, 40, 50), enough=1)])
    run = Driver(machine, SPACE, Budget(configs=4)).drive(search, RNG)
    assert sorted(found(run.trials)) == [10, 20, 30, 40]
    assert machine.asked[-1] == ([20, 40], None)  # the last of the budget: all of it is waited for
    assert run.stopped == "budget of 4 configs"


def test_what_is_late_is_dropped_where_the_target_is_reached() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30), enough=1), ns(20)])
    run = Driver(machine, SPACE, Budget(target_ms=10.0)).drive(search, RNG)
    assert found(run.trials) == [10]
    assert run.on_target
    assert machine.running == []


def test_what_was_measured_late_survives_a_model_that_fails() -> None:
    class Failing(Scripted):
        def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
            yield Batch(ns(10, 30), enough=1)
            raise LLMUnavailable("no answer")

    kept: list[int] = []
    driver = Driver(Pipeline(slow=frozenset({30})), SPACE, record=lambda t: kept.append(t.config["n"]))
    run = driver.drive(Failing([]), RNG)
    assert run.error == "no answer"
    assert found(run.trials) == kept == [10]


def test_nothing_stays_under_way_where_a_search_fails() -> None:
    machine = Pipeline(slow=frozenset({30}))
    search = Scripted([Batch(ns(10, 30), enough=1), [{"no such": 1}]])
    with pytest.raises(SpaceError):
        Driver(machine, SPACE).drive(search, RNG)
    assert machine.running == []


def test_nothing_stays_under_way_where_the_time_ends_as_enough_is_known() -> None:
    class Slow(Pipeline):
        def measure(self, *args: Any, **options: Any) -> list[Trial]:
            trials = super().measure(*args, **options)
            time.sleep(0.1)
            return trials

    machine = Slow(slow=frozenset({30}))
    run = Driver(machine, SPACE, Budget(seconds=0.1)).drive(Scripted([Batch(ns(10, 30), enough=1), ns(20)]), RNG)
    assert found(run.trials) == [10]
    assert machine.running == []


def test_a_stage_may_have_its_own_limit_for_compiling() -> None:
    machine = Machine()
    driver = Driver(machine, SPACE, compile_limits={"model": 15.0})
    driver.drive(Scripted([Batch(ns(1, 2), "model"), Batch(ns(3), "random")]), RNG)
    assert machine.compile_limits == [15.0, None]


def test_random_numbers_depend_on_seed_and_name_alone() -> None:
    def draw(seed: int, name: str) -> float:
        return search_rng(seed, name).random()

    assert draw(0, "softmax") == draw(0, "softmax")
    assert len({draw(0, "softmax"), draw(1, "softmax"), draw(0, "matmul")}) == 3


def test_user_configs_are_completed_and_checked() -> None:
    space = ConfigSpace({"n": integer(0, 9, default=4), "flag": choice(False, True)})
    assert checked_configs(space, [{"n": 2}, {}]) == ({"n": 2, "flag": False}, {"n": 4, "flag": False})
    for wrong in ({"n": 10}, {"m": 1}, {"n": 1, "flag": "yes"}):
        with pytest.raises(UsageError, match="configs= holds"):
            checked_configs(space, [wrong])
    for no_mapping in (3, "n", None):
        with pytest.raises(UsageError, match="configs= holds"):
            checked_configs(space, [no_mapping])  # type: ignore[list-item]


@pytest.fixture(autouse=True)
def rng_is_left_alone() -> Iterator[None]:
    state = random.getstate()
    yield
    assert random.getstate() == state
