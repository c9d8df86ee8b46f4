"""What the package offers to who writes a search: the driver, recorded spaces, the scripted model, the contract."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest

from pytest_kerneltune.errors import LLMError, SpaceError
from pytest_kerneltune.parameter import Choice, Integer, PowerOfTwo, integer
from pytest_kerneltune.search import Context, Effort, Message, Proposals
from pytest_kerneltune.search.port import StreamedReply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import SPACES, RecordedSpace, ReplyInPieces, ScriptedModel, SearchContract, drive
from pytest_kerneltune.trial import Batch, Config, Status, Trial

LINE = ConfigSpace({"x": integer(0, 9)})
RECORDED = Path(__file__).parent / "data" / "convolution_A100.json.gz"


class Pairs:
    """Random configs two at a time: a search that does nothing wrong."""

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:  # noqa: ARG003 - the protocol has them
        return cls()

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        known = {space.key(t.config) for t in prior}
        while batch := space.sample_new(rng, 2, known):
            known |= {space.key(c) for c in batch}
            yield batch


def test_drive_stops_within_a_batch_and_at_the_end() -> None:
    assert len(drive(Pairs(), LINE, lambda _: 1.0, 3, seed=0)) == 3
    assert len(drive(Pairs(), LINE, lambda _: 1.0, 30, seed=0)) == 10


def test_drive_takes_latencies_failures_and_whole_trials() -> None:
    def measure(config: Config) -> float | Trial:
        answers: dict[int, float | Trial] = {0: math.inf, 1: Trial(config, Status.WRONG)}
        return answers.get(config["x"], 2.5)

    trials = drive(Pairs(), LINE, measure, 30, seed=0)
    by_x = {t.config["x"]: (t.status, t.latency_ms) for t in trials}
    assert by_x[0] == (Status.RUNTIME_ERROR, math.inf)
    assert by_x[1] == (Status.WRONG, math.inf)
    assert by_x[2] == (Status.OK, 2.5)


def test_a_recorded_space_is_read_whole() -> None:
    recorded = RecordedSpace.load(RECORDED)
    assert recorded.name == "convolution_A100"
    assert len(recorded) == 4362 == sum(1 for _ in recorded.space.enumerate())
    assert len(recorded.latencies) == 4201
    assert recorded.best_ms == 0.5536
    fastest = {"block_size_x": 32, "block_size_y": 4, "tile_size_x": 1, "tile_size_y": 3}
    config = {**fastest, "read_only": 1, "use_padding": 0, "use_shmem": 1}
    assert recorded.measure(recorded.space.canonical(config)).latency_ms == recorded.best_ms


def test_a_recorded_space_has_the_narrowest_kinds_and_its_failures(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json.gz"
    params = {"tile": [8, 16, 32], "unroll": [1, 2, 3], "load": ["", ["a", 1]]}
    data = {"name": "tiny", "params": params, "code": [0, 3, 17], "time": [1.5, None, 0.5], "fail": {"1": "wrong"}}
    with gzip.open(path, "wt") as file:
        json.dump(data, file)
    recorded = RecordedSpace.load(path)
    kinds = [type(p) for p in recorded.space.parameters.values()]
    assert kinds == [PowerOfTwo, Integer, Choice]
    trials = [recorded.measure(c) for c in recorded.space.enumerate()]
    assert [(t.status, t.latency_ms) for t in trials] == [
        (Status.OK, 1.5),
        (Status.WRONG, math.inf),
        (Status.OK, 0.5),
    ]
    assert trials[-1].config == {"tile": 32, "unroll": 3, "load": ("a", 1)}


def test_a_scripted_model_replies_in_order_and_remembers_what_it_was_asked() -> None:
    model = ScriptedModel(["one", LLMError("busy"), "two"])
    question = [Message("user", "which?")]
    assert model(question).result() == "one"
    with pytest.raises(LLMError, match="busy"):
        model([]).result()
    assert model([]).result() == "two"
    with pytest.raises(LLMError, match="no more replies"):
        model([]).result()
    assert model.asked == [question, [], [], []]


@pytest.mark.parametrize("pieces", [1, 3, 99])
def test_a_scripted_model_may_reply_in_pieces(pieces: int) -> None:
    model = ScriptedModel(["one two", LLMError("busy"), "", "later"], pieces)
    reply = model([])
    assert isinstance(reply, StreamedReply)
    read = [reply.read(beyond=0)]
    while not reply.done():
        read.append(reply.read(beyond=len(read[-1])))
    assert len(set(read)) == min(pieces, len("one two"))
    assert read[-1] == reply.result() == "one two"
    with pytest.raises(LLMError, match="busy"):
        model([]).result()
    assert model([]).result() == ""
    assert model([]).result() == "later", "whoever does not read it waits for the end"


def test_a_reply_in_pieces_may_break_off() -> None:
    reply = ReplyInPieces(["one ", "two"], LLMError("reset"))
    assert reply.read(beyond=5) == "one two"
    assert not reply.done()
    assert reply.read(beyond=7) == "one two"
    with pytest.raises(LLMError, match="reset"):
        reply.result()


def test_the_contract_accepts_a_search_that_keeps_it() -> None:
    contract, search = SearchContract(), Pairs()
    for make in SPACES.values():
        contract.test_keeps_the_rules_and_repeats_itself(search, make())
        contract.test_goes_on_from_prior_trials(search, make())
        contract.test_can_be_dropped_after_any_batch(search, make())


class Retiming(Pairs):
    """Asks that the fastest be timed again, and notes what it is sent."""

    sent: ClassVar[list[tuple[int, list[float]]]] = []

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        for batch in Pairs().propose(space, rng, prior):
            trials = yield Batch(batch, retime=3)
            self.sent.append((len(batch), [t.latency_ms for t in trials]))


def test_the_contract_sends_earlier_trials_again_where_a_batch_asks_for_it() -> None:
    SearchContract().run(Retiming(), LINE, lambda c: 20.0 - c["x"], budget=99)
    earlier: list[float] = []
    for count, latencies in Retiming.sent:
        assert latencies[count:] == sorted(earlier)[:3]
        earlier += latencies[:count]
    assert len(earlier) == 10


class Repeating(Pairs):
    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        for _ in range(3):
            yield [space.default]


class Careless(Pairs):
    """Proposes what the constraint refuses."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield [dict.fromkeys(space.names, 9)]


class Mute(Pairs):
    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield []


class Random(Pairs):
    """Draws from the global generator."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield space.sample_new(random.Random(random.random()), 2, frozenset())


class NumpyRandom(Pairs):
    """Draws from numpy's global generator."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield space.sample_new(random.Random(int(np.random.randint(9))), 2, frozenset())


class Unrepeatable(Pairs):
    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield from super().propose(space, random.Random(), prior)


class Meddling(Pairs):
    """Changes the trials it is sent."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        trials = yield [dict(space.default)]
        object.__setattr__(trials[0], "latency_ms", 0.0)
        yield from super().propose(space, rng, trials)


class Forgetful(Pairs):
    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        yield from super().propose(space, rng)


class Clinging(Pairs):
    """Goes on after it was dropped."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        try:
            yield from super().propose(space, rng, prior)
        finally:
            yield [space.default]


@pytest.mark.parametrize(
    ("search", "test", "space", "error"),
    [
        (Repeating(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "proposed twice"),
        (Careless(), "test_keeps_the_rules_and_repeats_itself", "few allowed of many", "where= refuses"),
        (Mute(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "an empty batch"),
        (Random(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "global random generator"),
        (NumpyRandom(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "global random generator"),
        (Unrepeatable(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "other proposals"),
        (Meddling(), "test_keeps_the_rules_and_repeats_itself", "10^15 configs", "changed the trials"),
        (Forgetful(), "test_goes_on_from_prior_trials", "few allowed of many", "prior trial's config"),
        (Clinging(), "test_can_be_dropped_after_any_batch", "10^15 configs", "GeneratorExit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Pairs) else "",
)
def test_the_contract_catches(search: Pairs, test: str, space: str, error: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, SpaceError), match=re.escape(error)):
        getattr(SearchContract(), test)(search, SPACES[space]())
