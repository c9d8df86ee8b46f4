"""For who writes a search: a driver without a clock, replay of recorded spaces, a scripted model, and the contract.

A search of your own passes the contract that ours pass when this class is collected by pytest::

    from pytest_kerneltune.testing import SearchContract

    class TestMySearch(SearchContract):
        @pytest.fixture
        def search(self):
            return MySearch()

A kind of kernel has ``BackendContract``, described in ``contract_backend``.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import pytest

from pytest_kerneltune.contract_backend import BackendContract as BackendContract
from pytest_kerneltune.errors import LLMError, UsageError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.recorded import RecordedSpace as RecordedSpace
from pytest_kerneltune.search import Message, Proposals, Search
from pytest_kerneltune.search.port import StreamedReply
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

Measure: TypeAlias = Callable[[Config], float | Trial]
"""Answers a config with its latency in ms (inf: it failed), or with the whole trial."""


def drive(
    search: Search, space: ConfigSpace, measure: Measure, budget: int, seed: int, prior: Sequence[Trial] = ()
) -> list[Trial]:
    """The trials of a search that is stopped after ``budget`` configs (``prior`` not counted) or ends by itself."""
    trials: list[Trial] = []
    proposals = search.propose(space, random.Random(seed), prior)
    batch = next(proposals, None)
    while batch is not None:
        answer = [as_trial(c, measure) for c in batch[: budget - len(trials)]]
        trials += answer
        batch = _send(proposals, answer) if len(trials) < budget else None
    proposals.close()
    return trials


def as_trial(config: Config, measure: Measure) -> Trial:
    """What ``measure`` says about a config, as a trial."""
    found = measure(config)
    if isinstance(found, Trial):
        return found
    return Trial(config, Status.OK if math.isfinite(found) else Status.RUNTIME_ERROR, found)


def _send(proposals: Proposals, trials: Sequence[Trial]) -> Sequence[Config] | None:
    try:
        return proposals.send(trials)
    except StopIteration:
        return None


class ScriptedModel:
    """A language model that answers from a list, at once, or in so many ``pieces``, each when the last was read.

    ``asked`` holds the conversation of every request. An LLMError among the replies fails the request it stands for;
    when the replies run out, every further request fails.
    """

    def __init__(self, replies: Sequence[str | LLMError], pieces: int = 0) -> None:
        self._replies = tuple(replies)
        self._pieces = pieces
        self.asked: list[list[Message]] = []

    def __call__(self, messages: Sequence[Message]) -> Future[str]:
        number = len(self.asked)
        self.asked.append(list(messages))
        reply = self._replies[number] if number < len(self._replies) else LLMError("the script has no more replies")
        if isinstance(reply, str) and self._pieces:
            size = max(1, math.ceil(len(reply) / self._pieces))
            return ReplyInPieces([reply[at : at + size] for at in range(0, len(reply), size)])
        future: Future[str] = Future()
        if isinstance(reply, LLMError):
            future.set_exception(reply)
        else:
            future.set_result(reply)
        return future


class ReplyInPieces(StreamedReply):
    """A reply of which each read brings one more of ``pieces``, and the one after the last the end.

    With an ``error`` that is how it ends.
    """

    def __init__(self, pieces: Sequence[str], error: LLMError | None = None) -> None:
        super().__init__()
        self._waiting, self._error = list(pieces), error
        self._text, self._written = "".join(pieces), 0

    def read(self, beyond: int) -> str:
        while not self.done() and self._written <= beyond:
            self._go_on()
        return super().read(beyond)

    def result(self, timeout: float | None = None) -> str:
        while not self.done():
            self._go_on()
        return super().result(timeout)

    def _go_on(self) -> None:
        if self._waiting:
            self._written += len(self._waiting[0])
            self.write(self._waiting.pop(0))
        elif self._error is None:
            self.set_result(self._text)
        else:
            self.set_exception(self._error)


def _mixed() -> ConfigSpace:
    kinds: dict[str, Parameter] = {
        "order": permutation(3),
        "loads": list_of(choice("", "first", "last"), 2),
        "stages": integer(1, 4),
        "tile": power_of_two(1, 64, default=8),
        "unit": choice(None, 1, 2.5, "auto"),
        "unroll": boolean(),
    }
    return ConfigSpace(kinds)


def _conditional() -> ConfigSpace:
    kinds: dict[str, Parameter] = {
        "group": integer(1, 8, default=2, when={"swizzle": True}),
        "swizzle": boolean(when={"programs": ("persistent", "persistent interleaved")}),
        "multiplier": power_of_two(1, 128, default=2, when={"programs": ("persistent", "persistent interleaved")}),
        "programs": choice("flat", "grid", "persistent", "persistent interleaved"),
        "order": permutation(3, when={"programs": ("grid", "persistent"), "swizzle": False}),
    }
    return ConfigSpace(kinds, lambda c: c["group"] * c["multiplier"] <= 256)


SPACES: Mapping[str, Callable[[], ConfigSpace]] = {
    "one config": lambda: ConfigSpace({"tile": integer(3, 3)}),
    "two configs": lambda: ConfigSpace({"unroll": boolean()}),
    "no parameters": lambda: ConfigSpace({}),
    "small": lambda: ConfigSpace({"tile": power_of_two(1, 8), "unroll": boolean(), "mode": choice("a", "b", "c")}),
    "every kind": _mixed,
    "conditions": _conditional,
    "few allowed": lambda: ConfigSpace(
        {"x": integer(0, 999), "y": integer(0, 999)}, lambda c: bool((7 * c["x"] + c["y"]) % 997 == 3)
    ),
    "few allowed of many": lambda: ConfigSpace(
        {f"p{i}": integer(0, 9) for i in range(15)}, lambda c: sum(c.values()) <= 1
    ),
    "10^15 configs": lambda: ConfigSpace({f"p{i}": integer(0, 9) for i in range(15)}),
}
"""The spaces of the contract, from one config to 10^15, most of them awkward."""


def made_up_latency(config: Config) -> float:
    """A latency in ms that depends on every parameter and fails for about one config in seven."""
    number = random.Random(json.dumps(list(config.values()))).random()
    return math.inf if number < 0.15 else 1.0 + len(str(config)) % 7 + number


class SearchContract:
    """What holds for every search; subclass it, with a fixture ``search`` that returns one (a plain value to copy).

    Every run of :meth:`run` is checked against the rules that hold batch by batch. A search may refuse a space by a
    UsageError before its first batch.
    """

    budget = 14

    @pytest.fixture
    def search(self) -> Search:
        raise NotImplementedError("override the fixture `search`")

    @pytest.fixture(params=SPACES)
    def space(self, request: pytest.FixtureRequest) -> ConfigSpace:
        return SPACES[request.param]()

    def run(
        self,
        search: Search,
        space: ConfigSpace,
        measure: Measure = made_up_latency,
        prior: Sequence[Trial] = (),
        budget: int | None = None,
    ) -> list[Trial]:
        """The trials of a copy of ``search``; none where it refuses the space."""
        limit = self.budget if budget is None else budget
        trials: list[Trial] = []
        for batch, proposals in _batches(copy.deepcopy(search), space, measure, prior, trials):
            assert batch, "an empty batch"
            if len(trials) + len(batch) >= limit:
                proposals.close()
                trials += [as_trial(c, measure) for c in batch[: limit - len(trials)]]
                break
        _check_configs(space, trials, prior)
        return trials

    def test_keeps_the_rules_and_repeats_itself(self, search: Search, space: ConfigSpace) -> None:
        before = _global_generators()
        trials = self.run(search, space)
        assert _global_generators() == before, "the search used a global random generator"
        assert self.run(search, space) == trials, "same seed and same trials, other proposals"

    def test_survives_a_kernel_that_never_works(self, search: Search, space: ConfigSpace) -> None:
        assert not any(t.ok for t in self.run(search, space, lambda _: math.inf))

    def test_survives_configs_that_are_all_equally_fast(self, search: Search, space: ConfigSpace) -> None:
        assert all(t.ok for t in self.run(search, space, lambda _: 1.0))

    def test_survives_a_single_config_that_works(self, search: Search, space: ConfigSpace) -> None:
        only = space.key(space.default)
        trials = self.run(search, space, lambda c: 1.0 if space.key(c) == only else math.inf)
        assert sum(t.ok for t in trials) <= 1

    def test_goes_on_from_prior_trials(self, search: Search, space: ConfigSpace) -> None:
        prior = self.run(search, space, budget=9)
        before = copy.deepcopy(prior)
        self.run(search, space, prior=prior)
        assert prior == before, "the search changed its prior trials"

    def test_can_be_dropped_after_any_batch(self, search: Search, space: ConfigSpace) -> None:
        for wanted in (0, 1, 3):
            batches = _batches(copy.deepcopy(search), space, made_up_latency, (), [])
            for number, (_, proposals) in enumerate(batches):
                if number == wanted:
                    proposals.close()
                    assert next(proposals, None) is None
                    break

    @pytest.mark.parametrize("name", ["one config", "two configs", "small", "few allowed of many"])
    def test_ends_when_a_space_is_exhausted(self, search: Search, name: str) -> None:
        space = SPACES[name]()
        assert len(self.run(search, space, budget=1000)) <= 24

    def test_has_nothing_to_add_where_every_config_is_known(self, search: Search) -> None:
        space = SPACES["two configs"]()
        prior = [Trial(c, Status.CRASH) for c in space.enumerate()]
        assert self.run(search, space, prior=prior) == []


def _batches(
    search: Search, space: ConfigSpace, measure: Measure, prior: Sequence[Trial], trials: list[Trial]
) -> Iterator[tuple[Sequence[Config], Proposals]]:
    """Every batch of a search, with the search; what is measured goes to ``trials``. None where it refuses the space.

    Where a batch asks for it, the fastest earlier trials are sent again behind its own. Checks that a search leaves the
    trials that it is sent as they are.
    """
    proposals = search.propose(space, random.Random(1), prior)
    try:
        batch = next(proposals, None)
    except UsageError:
        return
    while batch is not None:
        yield batch, proposals
        answer = [as_trial(c, measure) for c in batch]
        again = sorted((t for t in trials if t.ok), key=lambda t: t.latency_ms)[: getattr(batch, "retime", 0)]
        trials += answer
        answer += again
        before = copy.deepcopy(answer)
        batch = _send(proposals, answer)
        assert answer == before, "the search changed the trials it was sent"


def _check_configs(space: ConfigSpace, trials: Sequence[Trial], prior: Sequence[Trial]) -> None:
    for config in (t.config for t in trials):
        assert list(space.canonical(config).items()) == list(config.items()), "not canonical"
    keys = [space.key(t.config) for t in trials]
    assert len(set(keys)) == len(keys), "a config was proposed twice"
    assert not set(keys) & {space.key(t.config) for t in prior}, "a prior trial's config was proposed"


def _global_generators() -> tuple[Any, ...]:
    import numpy as np

    kind, words, *rest = np.random.get_state(legacy=True)
    return random.getstate(), kind, np.asarray(words).tolist(), rest
