"""Searches that ask a language model, with scripted models and made-up latencies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search import (
    DEFAULT_SEARCH,
    SEARCHES,
    Context,
    Effort,
    Message,
    Proposals,
    Search,
    Subject,
    create,
    second_stages,
)
from pytest_kerneltune.search.guided import MODEL, START, LLMGuidedSearch, LLMSeededLFBOTreeSearch, LLMSeededSearch
from pytest_kerneltune.search.sampling import FiniteSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Config, Status, Trial

SPACE = ConfigSpace({"TILE": power_of_two(1, 1024, default=8), "UNROLL": integer(1, 16), "PAD": integer(0, 31)})


def latency(config: Config) -> float:
    tile, unroll, pad = (int(config[name]) for name in SPACE.names)
    return 1.0 + abs(tile.bit_length() - 7) + abs(unroll - 5) / 10 + pad / 100


def measured(config: Config) -> Trial:
    return Trial(config, latency_ms=latency(config))


def reply(*configs: dict[str, Any]) -> str:
    return json.dumps({"configs": configs})


@dataclass
class Scripted:
    """A model that answers from a list; an LLMError in it fails that request. ``asked`` holds the conversations."""

    replies: Sequence[str | LLMError]
    asked: list[list[Message]] = field(default_factory=list)

    def submit(self, messages: Sequence[Message]) -> Future[str]:
        future: Future[str] = Future()
        said = self.replies[len(self.asked)]
        self.asked.append(list(messages))
        if isinstance(said, LLMError):
            future.set_exception(said)
        else:
            future.set_result(said)
        return future


def drive(
    search: Search, prior: Sequence[Trial] = (), measure: Callable[[Config], Trial] = measured
) -> tuple[list[Batch], list[Trial]]:
    """All batches and trials of a search; checks that it keeps to the rules of searches."""
    seen = {SPACE.key(t.config) for t in prior}
    batches, trials = [], []
    proposals = search.propose(SPACE, random.Random(7), prior)
    try:
        batch = next(proposals)
        while True:
            assert isinstance(batch, Batch)
            keys = [SPACE.key(SPACE.canonical(c)) for c in batch]
            assert len(set(keys)) == len(keys)
            assert seen.isdisjoint(keys)
            seen.update(keys)
            batches.append(batch)
            answer = [measure(c) for c in batch]
            trials += answer
            batch = proposals.send(answer)
    except StopIteration:
        return batches, trials


GOOD = [{"TILE": 64, "UNROLL": u} for u in (4, 5, 6)]


def test_default_user_configs_and_random_ones_come_before_the_reply() -> None:
    model = Scripted([reply(*GOOD)])
    start, proposed = drive(LLMGuidedSearch(model.submit, configs=({**SPACE.default, "PAD": 31},)))[0]
    assert start[0] == SPACE.default
    assert start[1] == {**SPACE.default, "PAD": 31}
    assert len(start) == 12
    assert (start.stage, proposed.stage) == (START, MODEL)
    assert [c["UNROLL"] for c in proposed] == [4, 5, 6]
    assert proposed.note == "3 proposed, 3 valid, 3 new"


def test_the_request_is_under_way_while_the_start_is_measured() -> None:
    model = Scripted([reply(*GOOD)])
    proposals = LLMGuidedSearch(model.submit).propose(SPACE, random.Random(0))
    next(proposals)
    assert len(model.asked) == 1
    assert model.asked[0][0].role == "system"
    proposals.close()


def test_without_a_model_the_start_is_all() -> None:
    batches, trials = drive(LLMGuidedSearch())
    assert [b.stage for b in batches] == [START]
    assert len(trials) == 11


def test_a_failing_model_ends_the_search_after_its_start() -> None:
    batches, _ = drive(LLMGuidedSearch(Scripted([LLMError("no credit")]).submit, rounds=4))
    assert [b.stage for b in batches] == [START]


def test_a_model_that_fails_later_keeps_what_it_found() -> None:
    batches, trials = drive(LLMGuidedSearch(Scripted([reply(*GOOD), LLMError("gone")]).submit, rounds=4))
    assert [b.stage for b in batches] == [START, MODEL]
    assert min(t.latency_ms for t in trials) == latency({"TILE": 64, "UNROLL": 5, "PAD": 0})


def test_later_rounds_are_told_the_results_and_what_was_dropped() -> None:
    model = Scripted([reply({"TILE": 16}, {"TILE": 16}, {"TILE": "huge"}), reply({"TILE": 64})])
    batches, _ = drive(LLMGuidedSearch(model.submit, rounds=2, initial_random=0))
    assert [len(b) for b in batches] == [1, 1, 1]
    assert batches[1].note == "3 proposed, 1 valid, 1 new; dropped: 1 x duplicate, 1 x TILE=huge does not fit"
    first, second = model.asked
    assert second[:2] == first
    assert second[2] == Message("assistant", '{"configs":[{"TILE":16,"UNROLL":1,"PAD":0}]}')
    assert "1 x TILE=huge does not fit" in second[3].content
    assert f"{latency({'TILE': 16, 'UNROLL': 1, 'PAD': 0}):.4g} ms (x1.000)" in second[3].content
    assert "Round 2" in second[3].content


def test_the_conversation_keeps_its_beginning_and_the_last_three_exchanges() -> None:
    model = Scripted([reply({"TILE": 64, "UNROLL": 5, "PAD": 20 - 4 * i}) for i in range(6)])
    drive(LLMGuidedSearch(model.submit, rounds=6, initial_random=0, min_gain=0.0))
    assert [len(asked) for asked in model.asked] == [2, 4, 6, 8, 8, 8]
    last = model.asked[-1]
    assert last[:2] == model.asked[0]
    assert [m.role for m in last[1:]] == ["user", "assistant", "user", "assistant", "user", "assistant", "user"]
    assert '"PAD":4' in last[-2].content
    assert "Round 6" in last[-1].content


def test_two_weak_rounds_in_a_row_end_the_search() -> None:
    replies = [reply({"TILE": 64, "UNROLL": 5}), *(reply({"TILE": 1024, "PAD": i}) for i in range(1, 6))]
    model = Scripted(replies)
    drive(LLMGuidedSearch(model.submit, rounds=6))
    assert len(model.asked) == 3


def test_a_reply_without_a_new_config_ends_the_search() -> None:
    model = Scripted([reply(*GOOD), reply(*GOOD), reply({"TILE": 1})])
    batches, _ = drive(LLMGuidedSearch(model.submit, rounds=4, initial_random=0))
    assert len(model.asked) == 2
    assert len(batches) == 2


def test_no_more_configs_are_taken_than_were_asked_for() -> None:
    model = Scripted([reply(*({"PAD": i} for i in range(1, 31)))])
    batches, _ = drive(LLMGuidedSearch(model.submit, configs_per_round=4, initial_random=0))
    assert [c["PAD"] for c in batches[1]] == [1, 2, 3, 4]
    assert batches[1].note == "30 proposed, 30 valid, 4 new; dropped: 26 x more than asked for"


def test_prior_trials_are_told_and_not_measured_again() -> None:
    prior = [Trial(SPACE.default, latency_ms=3.25), Trial(SPACE.canonical({**SPACE.default, "TILE": 64}), Status.CRASH)]
    model = Scripted([reply({"TILE": 64}, {"TILE": 128})])
    batches, _ = drive(LLMGuidedSearch(model.submit, initial_random=5), prior)
    assert [len(b) for b in batches] == [3, 1]
    assert "3.25 ms" in model.asked[0][1].content
    assert "1 x measured before" in batches[1].note


def test_everything_known_before_leaves_only_the_model() -> None:
    prior = [measured(c) for c in [SPACE.default, *SPACE.sample_new(random.Random(1), 40, {SPACE.key(SPACE.default)})]]
    batches, _ = drive(LLMGuidedSearch(Scripted([reply({"TILE": 64, "UNROLL": 5})]).submit), prior)
    assert [b.stage for b in batches] == [MODEL]


def test_failures_are_told_and_count_as_no_gain() -> None:
    model = Scripted([reply({"TILE": 2}), reply({"TILE": 4}), reply({"TILE": 16})])
    search = LLMGuidedSearch(model.submit, rounds=3, initial_random=0)
    drive(search, measure=lambda c: Trial(c, Status.COMPILE_ERROR, reason="nope"))
    assert len(model.asked) == 2, "two rounds without any gain are enough"
    assert "Too many configs fail" in model.asked[1][-1].content


def test_the_same_replies_and_seed_give_the_same_search() -> None:
    runs = [drive(LLMGuidedSearch(Scripted([reply(*GOOD)] * 2).submit, rounds=2))[1] for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("effort", "rounds"), [(Effort.QUICK, 1), (Effort.FULL, 4)])
def test_presets(effort: Effort, rounds: int) -> None:
    model = Scripted([])
    search = LLMGuidedSearch.preset(effort, Context((SPACE.default,), model.submit, Subject("k")))
    assert (search.rounds, search.configs_per_round, search.initial_random) == (rounds, 15, 10)
    assert search.subject.name == "k"
    assert search.configs == (SPACE.default,)
    assert search.with_rounds(2).rounds == 2


@dataclass(frozen=True)
class Second:
    """A second stage that notes its prior and proposes two configs, one at a time."""

    got: list[Trial]

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Second:  # noqa: ARG003
        return cls([])

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        self.got.extend(prior)
        for i in range(2):
            yield Batch([{**space.default, "TILE": 1024, "PAD": 30 + i}], stage="second", note=f"batch {i}")


def hybrid(*replies: str | LLMError, rounds: int = 1) -> tuple[LLMSeededSearch, Second]:
    second = Second([])
    model = Scripted(replies).submit if replies else None
    return LLMSeededSearch(LLMGuidedSearch(model, rounds=rounds), second), second


def test_the_second_stage_gets_all_that_the_first_measured() -> None:
    search, second = hybrid(reply(*GOOD))
    prior = [Trial(SPACE.canonical({**SPACE.default, "PAD": 17}), latency_ms=9.0)]
    batches, trials = drive(search, prior)
    assert [b.stage for b in batches] == [START, MODEL, "second", "second"]
    assert second.got == prior + trials[:-2]
    assert [b.note for b in batches[2:]] == ["batch 0", "batch 1"]


def test_failed_trials_are_handed_on_too() -> None:
    search, second = hybrid(reply(*GOOD))
    drive(search, measure=lambda c: measured(c) if c["UNROLL"] == 5 else Trial(c, Status.CRASH))
    assert [t.status for t in second.got[-3:]] == [Status.CRASH, Status.OK, Status.CRASH]
    assert sum(not t.ok for t in second.got) >= 2


def test_without_a_model_the_hybrid_is_its_second_stage() -> None:
    for search, second in (hybrid(), hybrid(reply(*GOOD), rounds=0)):
        batches, _ = drive(search)
        assert [b.stage for b in batches] == ["second", "second"]
        assert second.got == []


def test_a_failing_model_is_noted_with_the_second_stage() -> None:
    search, second = hybrid(LLMError("anthropic refused the key (401): bad key"))
    batches, trials = drive(search)
    assert [b.stage for b in batches] == [START, "second", "second"]
    assert batches[1].note == "language model: anthropic refused the key (401): bad key; batch 0"
    assert batches[2].note == "batch 1"
    assert second.got == trials[:-2]


def test_a_useless_reply_is_noted_with_the_second_stage() -> None:
    search, _ = hybrid("I cannot help with that.")
    assert drive(search)[0][1].note == "language model: 0 proposed, 0 valid, 0 new; batch 0"


@pytest.mark.parametrize("effort", [Effort.QUICK, Effort.FULL])
@pytest.mark.parametrize("kind", [LLMSeededSearch, LLMSeededLFBOTreeSearch])
def test_presets_of_the_hybrids_have_one_round_whatever_the_effort(kind: type[LLMSeededSearch], effort: Effort) -> None:
    model = Scripted([])
    search = kind.preset(effort, Context((SPACE.default,), model.submit))
    assert search.guide == LLMGuidedSearch(model.submit, configs=(SPACE.default,), rounds=1)
    assert search.second == create(type(search.second).__name__, effort, Context((SPACE.default,)))
    assert search.with_rounds(3).guide.rounds == 3
    assert type(search.with_rounds(3)) is kind


def test_the_second_stage_is_the_default_search_unless_another_is_named() -> None:
    for named, expected in ((None, DEFAULT_SEARCH), ("RandomSearch", "RandomSearch")):
        search = LLMSeededSearch.preset(Effort.QUICK, Context(second_stage=named))
        assert type(search.second).__name__ == expected


@pytest.mark.parametrize(
    ("name", "effort", "uses"),
    [
        ("LFBOTreeSearch", Effort.QUICK, True),
        ("LFBOTreeSearch", Effort.FULL, False),
        ("RandomSearch", Effort.QUICK, False),
    ],
)
def test_the_hybrid_uses_the_related_trials_that_its_second_stage_uses(name: str, effort: Effort, uses: bool) -> None:
    related = ((Trial(SPACE.default, latency_ms=1.0),),)
    search = LLMSeededSearch.preset(effort, Context(related=related, second_stage=name))
    assert search.used_related == (related if uses else ())


def test_the_hybrid_with_a_fixed_second_stage_keeps_it() -> None:
    search = LLMSeededLFBOTreeSearch.preset(Effort.FULL, Context(second_stage="RandomSearch"))
    assert type(search.second).__name__ == "LFBOTreeSearch"


def test_what_can_be_a_second_stage_asks_no_model() -> None:
    assert set(SEARCHES) - set(second_stages()) == {"LLMGuidedSearch", "LLMSeededSearch", "LLMSeededLFBOTreeSearch"}


@pytest.mark.parametrize("name", ["LLMGuidedSearch", "LLMSeededSearch", "LLMSeededLFBOTreeSearch"])
def test_a_second_stage_that_asks_a_model_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} cannot be the second stage .*RandomSearch, .*LFBOTreeSearch"):
        LLMSeededSearch.preset(Effort.QUICK, Context(second_stage=name))
    with pytest.raises(UsageError, match=f"^{name} cannot be the second stage"):
        LLMSeededSearch(LLMGuidedSearch(), create(name, Effort.QUICK, Context()))


def test_an_unknown_second_stage_is_answered_with_the_names() -> None:
    with pytest.raises(UsageError, match=r"^unknown search 'Sorcery'; known: FiniteSearch, "):
        LLMSeededSearch.preset(Effort.QUICK, Context(second_stage="Sorcery"))


def test_a_space_that_the_second_stage_refuses_is_refused_before_the_model_is_asked() -> None:
    model = Scripted([reply(*GOOD)])
    proposals = LLMSeededSearch(LLMGuidedSearch(model.submit), FiniteSearch()).propose(SPACE, random.Random(0))
    with pytest.raises(UsageError, match="second stage refuses this space: FiniteSearch measures at most 1000 configs"):
        next(proposals)
    assert model.asked == []


def test_a_finite_second_stage_measures_what_the_first_left() -> None:
    named = tuple({**SPACE.default, "PAD": pad} for pad in (1, 2, 3))
    guide = LLMGuidedSearch(Scripted([reply({"PAD": 2}, *GOOD)]).submit, initial_random=0)
    batches, _ = drive(LLMSeededSearch(guide, FiniteSearch(named)))
    assert [b.stage for b in batches] == [START, MODEL, "FiniteSearch"]
    assert [c["PAD"] for c in batches[-1]] == [1, 3]


@pytest.mark.parametrize("name", ["LFBOPatternSearch", "LFBOTreeSearch"])
def test_the_second_stage_does_not_repeat_the_start(name: str) -> None:
    """Eleven configs of the start and three of the model are more than its own initial population."""
    model = Scripted([reply(*GOOD)])
    search = LLMSeededSearch.preset(Effort.QUICK, Context(model=model.submit, second_stage=name))
    proposals = search.propose(SPACE, random.Random(0))
    known: list[Trial] = []
    batch = next(proposals)
    while getattr(batch, "stage", "") in (START, MODEL):
        known += [measured(c) for c in batch]
        batch = proposals.send(known[-len(batch) :])
    assert len(known) == 14
    assert getattr(batch, "stage", "") == name
    assert len(batch) < len(next(search.second.propose(SPACE, random.Random(0))))


def test_the_hybrid_may_be_dropped_in_either_stage() -> None:
    for steps in range(4):
        search, _ = hybrid(reply(*GOOD))
        proposals = search.propose(SPACE, random.Random(0))
        batch = next(proposals)
        for _ in range(steps):
            batch = proposals.send([measured(c) for c in batch])
        proposals.close()
        with pytest.raises(StopIteration):
            next(proposals)
