"""Searches that ask a language model, with scripted models and made-up latencies."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search import FALLBACKS, Context, Effort, Message, RelatedTrials, Search, Subject
from pytest_kerneltune.search.fallback import FALLBACK
from pytest_kerneltune.search.guided import MODEL, START, LLMGuidedSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import ReplyInPieces, ScriptedModel, SearchContract
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
    """All batches and trials of a search; checks that it keeps to the rules of searches.

    The Batch that a search ends with, if it says anything, is the last one.
    """
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
    except StopIteration as end:
        said = isinstance(end.value, Batch) and (end.value.note or end.value.counts)
        return [*batches, end.value] if said else batches, trials


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
    assert [(b.stage, len(b)) for b in batches] == [(START, 11), (MODEL, 0)]
    assert batches[-1].note == "language model: no credit"


def test_a_model_that_fails_later_keeps_what_it_found() -> None:
    batches, trials = drive(LLMGuidedSearch(Scripted([reply(*GOOD), LLMError("gone")]).submit, rounds=4))
    assert [(b.stage, len(b)) for b in batches] == [(START, 11), (MODEL, 3), (MODEL, 0)]
    assert batches[-1].note == "language model: gone"
    assert min(t.latency_ms for t in trials) == latency({"TILE": 64, "UNROLL": 5, "PAD": 0})


def test_later_rounds_are_told_the_results_and_what_was_dropped() -> None:
    model = Scripted([reply({"TILE": 16}, {"TILE": 16}, {"TILE": "huge"}), reply({"TILE": 64})])
    batches, _ = drive(LLMGuidedSearch(model.submit, rounds=2, initial_random=0))
    assert [len(b) for b in batches] == [1, 1, 1]
    assert batches[1].note == (
        "3 proposed, 1 valid, 1 new; dropped: 1 x duplicate, 1 x TILE=huge does not fit; "
        "warning: more than half of the model's configs could not be used"
    )
    first, second = model.asked
    assert second[:2] == first
    assert second[2] == Message("assistant", '{"configs":[{"TILE":16}]}'), "as configs are written in prompts"
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
    assert [len(b) for b in batches] == [1, 3, 0]
    assert batches[-1].note == "3 proposed, 3 valid, 0 new; dropped: 3 x measured before"
    assert batches[-1].counts == {"proposed": 3, "valid": 3, "new": 0}


def test_no_more_configs_are_quoted_than_were_asked_for() -> None:
    model = Scripted([reply(*({"PAD": i} for i in range(1, 31))), reply({"PAD": 31})])
    drive(LLMGuidedSearch(model.submit, configs_per_round=4, rounds=2))
    assert model.asked[1][2].content.count("PAD") == 4


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


# While the model writes, and before it is asked again


@pytest.mark.parametrize("pieces", [1, 9, 500])
def test_a_reply_is_measured_while_it_is_written(pieces: int) -> None:
    text = reply(*GOOD, {"TILE": 2, "UNROLL": "many"}, {"TILE": 128})
    (plain, _), (streamed, _) = (
        drive(LLMGuidedSearch(ScriptedModel([text], pieces=n), initial_random=3)) for n in (0, pieces)
    )
    assert [c for b in streamed for c in b] == [c for b in plain for c in b]
    assert [b.stage for b in streamed] == [START] + [MODEL] * (len(streamed) - 1)
    assert [b.note for b in streamed[1:]] == [""] * (len(streamed) - 2) + [plain[-1].note]
    assert (
        sum((Counter(b.counts) for b in streamed), Counter())
        == plain[-1].counts
        == {"proposed": 5, "valid": 4, "new": 4}
    )
    assert all(b.counts["new"] == len(b) for b in streamed[1:])
    assert len(streamed) == {1: 3, 9: 5, 500: 5}[pieces]


def test_random_numbers_do_not_depend_on_the_pieces() -> None:
    replies: list[str | LLMError] = [reply(*GOOD), LLMError("gone")]
    runs = [
        drive(LLMGuidedSearch(ScriptedModel(replies, n), rounds=2, fallback="random"))[1] for n in (0, 1, 3, 10, 999)
    ]
    assert all(run == runs[0] for run in runs)


def test_the_strongest_are_timed_again_before_each_later_prompt() -> None:
    model = ScriptedModel([reply({"TILE": 16}, {"TILE": 32}), reply({"TILE": 64})], pieces=99)
    batches, _ = drive(LLMGuidedSearch(model, rounds=2, initial_random=0))
    assert [(b.stage, b.retime) for b in batches] == [(START, 0), (MODEL, 0), (MODEL, 5), (MODEL, 0)]


def test_what_was_timed_again_is_told_to_the_model() -> None:
    model = Scripted([reply({"TILE": 64}), reply({"TILE": 32})])
    proposals = LLMGuidedSearch(model.submit, rounds=2, initial_random=0).propose(SPACE, random.Random(0))
    (default,) = next(proposals)
    (proposed,) = proposals.send([Trial(default, latency_ms=1.0)])
    proposals.send([Trial(proposed, latency_ms=2.5), Trial(default, latency_ms=3.75)])
    assert "Best latency 2.5 ms" in model.asked[1][-1].content
    assert "3.75 ms" in model.asked[1][-1].content
    proposals.close()


def test_a_reply_that_breaks_off_is_measured_and_is_the_last() -> None:
    text = reply(*GOOD)[:-8]

    class Breaking(ScriptedModel):
        def __call__(self, messages: Sequence[Message]) -> Future[str]:
            self.asked.append(list(messages))
            return ReplyInPieces([text[:50], text[50:]], LLMError("connection reset"))

    model = Breaking([])
    batches, _ = drive(LLMGuidedSearch(model, rounds=3))
    assert len(model.asked) == 1
    assert [c["UNROLL"] for b in batches if b.stage == MODEL for c in b] == [4, 5]
    assert batches[-1].note.endswith("broke off: connection reset")


# What takes the model's place

WARNING = "warning: more than half of the model's configs could not be used"
FAILURES: list[tuple[list[str | LLMError], str]] = [
    ([LLMError("no credit")], "no credit"),
    (["I cannot help with that."], "0 proposed, 0 valid, 0 new"),
    (
        [reply({"TILE": "huge"})],
        "1 proposed, 0 valid, 0 new; dropped: 1 x TILE=huge does not fit; " + WARNING,
    ),
]


def test_a_fallback_is_one_of_those_known() -> None:
    assert LLMGuidedSearch.preset(Effort.QUICK, Context(fallback="pattern")).fallback == "pattern"
    with pytest.raises(UsageError, match=r"fallback='prayer' is not one of seeds, random, pattern, error"):
        LLMGuidedSearch(fallback="prayer")


@pytest.mark.parametrize(("replies", "why"), FAILURES)
def test_random_configs_take_the_place_of_a_round(replies: list[str | LLMError], why: str) -> None:
    batches, _ = drive(LLMGuidedSearch(Scripted(replies).submit, rounds=4, configs_per_round=6, fallback="random"))
    assert [(b.stage, len(b)) for b in batches] == [(START, 11), (FALLBACK, 6)]
    assert batches[-1].note == f"language model: {why}"
    assert set(batches[-1].counts) == {"proposed", "valid", "new"}


@pytest.mark.parametrize(("replies", "why"), FAILURES)
def test_a_pattern_search_takes_the_place_of_all_rounds(replies: list[str | LLMError], why: str) -> None:
    search = LLMGuidedSearch(Scripted(replies).submit, rounds=4, configs_per_round=6, fallback="pattern")
    batches, trials = drive(search)
    assert {b.stage for b in batches[1:]} == {FALLBACK}
    assert len(trials) == 11 + 24
    assert [b.note for b in batches[1:]] == [f"language model: {why}"] + [""] * (len(batches) - 2)
    assert min(t.latency_ms for t in trials) < min(t.latency_ms for t in trials[:11])


def test_a_fallback_takes_the_place_of_the_rounds_that_are_left() -> None:
    replies: list[str | LLMError] = [reply(*GOOD), LLMError("gone")]
    for fallback, expected in (("random", 6), ("pattern", 18), ("seeds", 0)):
        search = LLMGuidedSearch(Scripted(replies).submit, rounds=4, configs_per_round=6, fallback=fallback)
        batches, _ = drive(search)
        assert sum(len(b) for b in batches if b.stage == FALLBACK) == expected
        assert [b.note for b in batches if b.note][-1] == "language model: gone"


@pytest.mark.parametrize(
    ("said", "stages"), [(reply({"TILE": 64}), [3, 1]), (LLMError("gone"), [3, 6]), ("no", [3, 6])]
)
def test_the_rest_of_the_start_is_for_where_nothing_comes_of_the_model(said: str | LLMError, stages: list[int]) -> None:
    batches, _ = drive(LLMGuidedSearch(Scripted([said]).submit, initial_random=8, early_random=2))
    assert [len(batch) for batch in batches] == stages
    assert batches[1].stage == (MODEL if stages[1] == 1 else START)


def test_configs_of_the_user_are_never_left_out_of_the_start() -> None:
    known = tuple({"TILE": 8, "UNROLL": n, "PAD": 0} for n in (2, 3, 4))
    search = LLMGuidedSearch.preset(Effort.QUICK, Context(known, Scripted([reply()]).submit, max_configs=5))
    assert [t.config for t in drive(search)[1]][:4] == [SPACE.default, *known]


@pytest.mark.parametrize(("replies", "why"), FAILURES)
def test_a_failing_model_may_be_an_error(replies: list[str | LLMError], why: str) -> None:
    search = LLMGuidedSearch(Scripted(replies).submit, Subject("softmax[n1024]"), fallback="error")
    with pytest.raises(LLMError, match=f"^request 1 to the language model .*: {why}$"):
        drive(search)


def test_a_later_request_that_fails_may_be_an_error() -> None:
    search = LLMGuidedSearch(Scripted([reply(*GOOD), LLMError("gone")]).submit, rounds=3, fallback="error")
    with pytest.raises(LLMError, match=r"^request 2 to the language model came to nothing: gone$"):
        drive(search)


def test_a_model_that_has_no_more_ideas_has_not_failed() -> None:
    for last in (reply(*GOOD), "That is all."):
        batches, _ = drive(LLMGuidedSearch(Scripted([reply(*GOOD), last]).submit, rounds=3, fallback="error"))
        assert [b.stage for b in batches] == [START, MODEL, MODEL]


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_no_model_is_a_failure_where_something_else_is_wanted(fallback: str) -> None:
    search = LLMGuidedSearch(fallback=fallback)
    if fallback == "error":
        with pytest.raises(LLMError, match="no language model"):
            drive(search)
        return
    batches, trials = drive(search)
    assert len(trials) == (11 if fallback == "seeds" else 26)
    assert [b.note for b in batches[1:] if b.note] == ["language model: no language model"] * (fallback != "seeds")


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_no_rounds_are_no_failure(fallback: str) -> None:
    for model in (None, Scripted([]).submit):
        assert [b.stage for b in drive(LLMGuidedSearch(model, rounds=0, fallback=fallback))[0]] == [START]


def test_a_port_that_refuses_at_once_has_failed_too() -> None:
    def refusing(_: Sequence[Message]) -> Future[str]:
        raise LLMError("closed")

    assert drive(LLMGuidedSearch(refusing))[0][-1].note == "language model: closed"


# Related kernels


def test_the_model_is_shown_related_kernels() -> None:
    related = (RelatedTrials([Trial(SPACE.canonical({**SPACE.default, "PAD": 7}), latency_ms=4.0)], "other[n7]"),)
    model = Scripted([reply(*GOOD)])
    search = LLMGuidedSearch.preset(Effort.QUICK, Context(model=model.submit, related=related))
    drive(search)
    assert "other[n7]" in model.asked[0][-1].content
    assert search.used_related == related
    assert search.with_rounds(0).used_related == ()
    assert LLMGuidedSearch.preset(Effort.QUICK, Context(related=related)).used_related == ()


class TestStreamedWithFallback(SearchContract):
    @pytest.fixture(params=["random", "pattern"])
    def search(self, request: pytest.FixtureRequest) -> Search:
        replies: list[str | LLMError] = [
            reply({"tile": 4, "unroll": True}, {"p3": 1}, {"x": 1, "y": 993}),
            LLMError("gone"),
        ]
        return LLMGuidedSearch(ScriptedModel(replies, 7), rounds=3, configs_per_round=4, fallback=request.param)
