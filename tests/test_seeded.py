"""Searches that hand what a language model proposed to a second search."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.parameter import integer, power_of_two
from pytest_kerneltune.search import (
    DEFAULT_SEARCH,
    SEARCHES,
    Context,
    Effort,
    Proposals,
    Search,
    create,
    second_stages,
)
from pytest_kerneltune.search.fallback import FALLBACK
from pytest_kerneltune.search.guided import MODEL, LLMGuidedSearch
from pytest_kerneltune.search.sampling import FiniteSearch
from pytest_kerneltune.search.seeded import REFINEMENT, LLMSeededLFBOTreeSearch, LLMSeededSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import ScriptedModel
from pytest_kerneltune.trial import Batch, Config, Status, Trial

SPACE = ConfigSpace({"TILE": power_of_two(1, 1024, default=8), "UNROLL": integer(1, 16), "PAD": integer(0, 31)})
GOOD = [{"TILE": 64, "UNROLL": u} for u in (4, 5, 6)]
POOR = [{"TILE": 1024, "PAD": pad} for pad in (29, 30, 31)]


def latency(config: Config) -> float:
    tile, unroll, pad = (int(config[name]) for name in SPACE.names)
    return 1.0 + abs(tile.bit_length() - 7) + abs(unroll - 5) / 10 + pad / 100


def reply(configs: Sequence[dict[str, Any]]) -> str:
    return json.dumps({"configs": configs})


def driven(
    search: Search, prior: Sequence[Trial] = (), limit: int = 60, seed: int = 7
) -> list[tuple[Batch, list[Trial]]]:
    """The batches of a search with their trials, and the Batch that it ends with; one TILE in two fails."""
    exchanged: list[tuple[Batch, list[Trial]]] = []
    known = {SPACE.key(t.config) for t in prior}
    proposals = search.propose(SPACE, random.Random(seed), prior)
    try:
        batch = next(proposals)
        while len(known) - len(prior) < limit:
            keys = {SPACE.key(SPACE.canonical(c)) for c in batch}
            assert len(keys) == len(batch) > 0
            assert not keys & known
            known |= keys
            exchanged.append((batch if isinstance(batch, Batch) else Batch(batch), [measured(c) for c in batch]))
            batch = proposals.send(exchanged[-1][1])
    except StopIteration as end:
        if isinstance(end.value, Batch) and end.value.note:
            exchanged.append((end.value, []))
    proposals.close()
    return exchanged


def measured(config: Config) -> Trial:
    return Trial(config, latency_ms=latency(config)) if config["UNROLL"] != 6 else Trial(config, Status.CRASH)


def stages(exchanged: Sequence[tuple[Batch, list[Trial]]]) -> list[tuple[str, int]]:
    return [(batch.stage, len(batch)) for batch, _ in exchanged]


def trials_of(exchanged: Sequence[tuple[Batch, list[Trial]]]) -> list[Trial]:
    return [trial for _, trials in exchanged for trial in trials]


@dataclass(frozen=True)
class Second:
    """A second stage that notes what it learns: a start of seven, then two configs, one at a time."""

    priors: list[list[Trial]] = field(default_factory=list)
    sent: list[list[Trial]] = field(default_factory=list)

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Second:  # noqa: ARG003 - the protocol has them
        return cls()

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        self.priors.append(list(prior))
        if len(prior) < 7:
            start = [{**space.default, "PAD": pad} for pad in range(len(prior), 7)]
            self.sent.append(list((yield Batch(start, "second", "start"))))
        for i in range(2):
            self.sent.append(list((yield Batch([{**space.default, "TILE": 4, "PAD": 30 + i}], "second", f"batch {i}"))))


def hybrid(*replies: str | LLMError, rounds: int = 1, fallback: str = "seeds") -> tuple[LLMSeededSearch, Second]:
    second = Second()
    model = ScriptedModel(replies) if replies else None
    return LLMSeededSearch(LLMGuidedSearch(model, rounds=rounds, fallback=fallback), second, refinement=0), second


def test_the_second_stage_goes_on_from_all_that_was_measured() -> None:
    search, second = hybrid(reply(GOOD))
    exchanged = driven(search)
    assert stages(exchanged) == [("second", 5), (MODEL, 3), ("second", 1), ("second", 1)]
    assert second.priors == [[], trials_of(exchanged)[:8]]
    assert [t.status for t in second.priors[1][5:]] == [Status.OK, Status.OK, Status.CRASH]
    assert [b.note for b, _ in exchanged] == ["start", "3 proposed, 3 valid, 3 new", "batch 0", "batch 1"]


def test_the_request_is_under_way_while_the_second_stages_start_is_measured() -> None:
    model = ScriptedModel([reply(GOOD)])
    proposals = LLMSeededSearch(LLMGuidedSearch(model), Second()).propose(SPACE, random.Random(0))
    assert len(next(proposals)) == 5
    assert len(model.asked) == 1
    proposals.close()


def test_what_was_timed_again_is_handed_on() -> None:
    search, second = hybrid(reply(GOOD), reply(GOOD), rounds=2)
    proposals = search.propose(SPACE, random.Random(0))
    head = [measured(c) for c in next(proposals)]
    told = [measured(c) for c in proposals.send(head)]
    again = Trial(head[2].config, latency_ms=2.125)
    proposals.send([*told, again])
    proposals.close()
    assert second.priors[-1] == [*head[:2], again, *head[3:], *told]


def test_poor_configs_of_the_model_are_no_start() -> None:
    search, second = hybrid(reply(POOR))
    exchanged = driven(search)
    assert stages(exchanged) == [("second", 5), (MODEL, 3), ("second", 2), ("second", 1), ("second", 1)]
    assert second.priors[1] == trials_of(exchanged)[:10]


def test_the_best_config_of_a_good_model_is_refined_first() -> None:
    search, second = hybrid(reply(GOOD))
    exchanged = driven(replace(search, refinement=6))
    assert stages(exchanged)[:2] == [("second", 5), (MODEL, 3)]
    steps = [t for batch, trials in exchanged if batch.stage == REFINEMENT for t in trials]
    assert len(steps) == 6
    assert any(t.config["TILE"] == 64 for t in steps)
    assert second.priors[1] == trials_of(exchanged)[:14]
    assert REFINEMENT not in dict(stages(driven(replace(hybrid(reply(POOR))[0], refinement=6))))


def test_what_the_model_proposed_of_the_second_stages_start_is_not_measured_again() -> None:
    search, _ = hybrid(reply([*POOR, {"PAD": 5}]))
    assert stages(driven(search)) == [("second", 5), (MODEL, 4), ("second", 1), ("second", 1), ("second", 1)]


def test_prior_trials_are_known_to_both() -> None:
    prior = [measured(SPACE.canonical({**SPACE.default, "TILE": 64, "UNROLL": 4})), measured(SPACE.default)]
    search, second = hybrid(reply(GOOD))
    exchanged = driven(search, prior)
    assert stages(exchanged)[:2] == [("second", 5), (MODEL, 2)]
    assert second.priors == [prior, prior + trials_of(exchanged)[:7]]


def test_without_a_model_the_hybrid_is_its_second_stage() -> None:
    for search, second in (hybrid(), hybrid(reply(GOOD), rounds=0), hybrid(rounds=0, fallback="error")):
        assert stages(driven(search)) == [("second", 7), ("second", 1), ("second", 1)]
        assert second.priors == [[]]


@pytest.mark.parametrize("failure", [LLMError("bad key"), "I cannot help with that.", reply([{"TILE": "x"}])])
def test_with_a_failing_model_the_second_stage_goes_on_as_if_alone(failure: str | LLMError) -> None:
    alone = Second()
    expected = driven(alone)
    search, second = hybrid(failure)
    exchanged = driven(search)
    assert stages(exchanged) == [("second", 5), ("second", 2), ("second", 1), ("second", 1)]
    assert trials_of(exchanged) == trials_of(expected)
    assert (second.priors, second.sent) == (alone.priors, alone.sent)
    assert [b.note.startswith("language model: ") for b, _ in exchanged] == [False, True, False, False]
    assert exchanged[1][0].counts.keys() == {"proposed", "valid", "new"}


@pytest.mark.parametrize("name", second_stages())
@pytest.mark.parametrize("prior", [0, 30])
def test_with_a_failing_model_every_second_stage_is_what_it_is_alone(name: str, prior: int) -> None:
    earlier = [measured(c) for c in SPACE.sample_new(random.Random(1), prior, set())]
    context = Context(second_stage=name, model=ScriptedModel([LLMError("down")]))
    if name == "FiniteSearch":
        finite = FiniteSearch(tuple({**SPACE.default, "PAD": pad} for pad in range(9)))
        alone: Search = finite
        search = LLMSeededSearch(LLMGuidedSearch(context.model), finite)
    else:
        alone, search = create(name, Effort.QUICK, Context()), LLMSeededSearch.preset(Effort.QUICK, context)
    expected, exchanged = driven(alone, earlier, limit=25), driven(search, earlier, limit=25)
    assert len(context.model.asked) == 1  # type: ignore[union-attr]
    length = min(len(trials_of(expected)), len(trials_of(exchanged)))
    assert trials_of(exchanged)[:length] == trials_of(expected)[:length]
    assert length >= 9 - prior


@pytest.mark.parametrize(("fallback", "count"), [("random", 15), ("pattern", 15)])
def test_a_fallback_comes_before_the_second_stage(fallback: str, count: int) -> None:
    for replies in ((LLMError("bad key"),), ()):
        search, second = hybrid(*replies, fallback=fallback)
        exchanged = driven(search)
        assert stages(exchanged)[0] == ("second", 5)
        assert sum(size for stage, size in stages(exchanged) if stage == FALLBACK) == count
        assert exchanged[1][0].note == f"language model: {'bad key' if replies else 'no language model'}"
        assert len(second.priors) == 2


def test_a_failing_model_may_be_an_error() -> None:
    with pytest.raises(LLMError, match="request 1 to the language model came to nothing: bad key"):
        driven(hybrid(LLMError("bad key"), fallback="error")[0])


def test_a_failure_is_not_lost_where_nothing_follows() -> None:
    only = FiniteSearch((SPACE.default,))
    exchanged = driven(LLMSeededSearch(LLMGuidedSearch(ScriptedModel([LLMError("bad key")])), only))
    assert stages(exchanged) == [("FiniteSearch", 1), (MODEL, 0)]
    assert exchanged[-1][0].note == "language model: bad key"


@pytest.mark.parametrize("pieces", [0, 1, 20, 999])
def test_pieces_make_no_difference(pieces: int) -> None:
    runs = [
        driven(LLMSeededSearch.preset(Effort.QUICK, Context(model=ScriptedModel([reply(GOOD + POOR)], n))), limit=25)
        for n in (0, pieces)
    ]
    assert trials_of(runs[0]) == trials_of(runs[1])


@pytest.mark.parametrize("effort", [Effort.QUICK, Effort.FULL])
@pytest.mark.parametrize("kind", [LLMSeededSearch, LLMSeededLFBOTreeSearch])
def test_presets_of_the_hybrids_have_one_round_whatever_the_effort(kind: type[LLMSeededSearch], effort: Effort) -> None:
    model = ScriptedModel([])
    search = kind.preset(effort, Context((SPACE.default,), model))
    assert search.guide == LLMGuidedSearch(model, configs=(SPACE.default,), rounds=1)
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
    model = ScriptedModel([reply(GOOD)])
    proposals = LLMSeededSearch(LLMGuidedSearch(model), FiniteSearch()).propose(SPACE, random.Random(0))
    with pytest.raises(UsageError, match="second stage refuses this space: FiniteSearch measures at most 1000 configs"):
        next(proposals)
    assert model.asked == []


def test_a_finite_second_stage_measures_what_the_model_left() -> None:
    named = tuple({**SPACE.default, "PAD": pad} for pad in range(8))
    guide = LLMGuidedSearch(ScriptedModel([reply([{"PAD": 6}, *GOOD])]))
    exchanged = driven(LLMSeededSearch(guide, FiniteSearch(named), refinement=0))
    assert [(b.stage, [c["PAD"] for c in b]) for b, _ in exchanged] == [
        ("FiniteSearch", [0, 1, 2, 3, 4]),
        (MODEL, [6, 0, 0, 0]),
        ("FiniteSearch", [5, 7]),
    ]


@pytest.mark.parametrize("name", ["LFBOPatternSearch", "LFBOTreeSearch", "GaussianProcessSearch", "PatternSearch"])
def test_a_good_model_saves_the_rest_of_the_second_stages_start(name: str) -> None:
    context = Context(model=ScriptedModel([reply([*GOOD, *POOR])]), second_stage=name)
    exchanged = driven(LLMSeededSearch.preset(Effort.QUICK, context), limit=25)
    assert stages(exchanged)[:2] == [(name, 5), (MODEL, 6)]
    first = next(create(name, Effort.QUICK, Context()).propose(SPACE, random.Random(7)))
    assert list(exchanged[0][0]) == list(first[:5])
    later = {SPACE.key(t.config) for t in trials_of(exchanged[2:])}
    assert not later & {SPACE.key(c) for c in first}


def test_the_hybrid_may_be_dropped_at_any_time() -> None:
    for steps in range(5):
        search, _ = hybrid(reply(POOR))
        proposals = search.propose(SPACE, random.Random(0))
        batch = next(proposals)
        for _ in range(min(steps, 4)):
            batch = proposals.send([measured(c) for c in batch])
        proposals.close()
        with pytest.raises(StopIteration):
            next(proposals)


def test_a_kernel_that_never_works_is_searched_on() -> None:
    search, second = hybrid(reply(GOOD))
    proposals = search.propose(SPACE, random.Random(0))
    batch = next(proposals)
    for _ in range(2):
        batch = proposals.send([Trial(c, Status.CRASH) for c in batch])
    assert getattr(batch, "stage", "") == "second"
    assert all(math.isinf(t.latency_ms) for t in second.priors[-1])
    proposals.close()
