"""Searches: which configs to measure next.

A search is a frozen dataclass of options with one method, a pure generator: it yields batches of configs and is sent
their trials, in the same order, failures included. It uses nothing but its options, the space, the rng, the prior
trials and what it is sent: no clock, environment, file, GPU or global random state. The driver (``driver.py``) owns
time, budget and measuring and may drop the generator after any yield.

To add a search: write the class in a module here and give it a row in ``SEARCHES``; the contract tests find it.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Protocol, Self, TypeAlias

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.search.port import Message as Message
from pytest_kerneltune.search.port import Submit as Submit
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

Proposals: TypeAlias = Generator[Sequence[Config], Sequence[Trial], Any]
"""Batches out, their trials in, in the same order; behind them may come new trials of configs measured earlier.

A search that says how many are ``enough`` (``Batch``) may be sent trials of any configs under way, each of them once.
What is returned is ignored, but for a Batch without configs: its note and counts go into the report.
"""

DEFAULT_SEARCH = "GaussianProcessSearch"


class Effort(StrEnum):
    """Preset of a search's sizes."""

    NONE = "none"
    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class Subject:
    """What a prompt may say about the kernel; ``source`` is empty where it must not leave the machine."""

    name: str = ""
    kind: str = ""
    source: str = ""
    inputs: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    constraint: str = ""
    hardware: tuple[str, ...] = ()


class RelatedTrials(tuple[Trial, ...]):
    """Trials of the same kernel at other shapes, elsewhere or before an edit; ``label`` says in a line which."""

    label: str

    def __new__(cls, trials: Iterable[Trial], label: str = "") -> RelatedTrials:
        related = super().__new__(cls, trials)
        related.label = label
        return related


Related: TypeAlias = tuple[tuple[Trial, ...], ...]
"""Trials of related kernels (``RelatedTrials`` where it is known which), the most alike first."""

FALLBACKS = ("seeds", "random", "pattern", "error")
"""What takes the place of a language model that cannot be asked: nothing (the search goes on with what it has), as many
random configs as the failed round was to bring, a pattern search of as many as all rounds left were to bring, or an
error."""


@dataclass(frozen=True)
class Context:
    """What a preset may use besides its own numbers.

    ``configs`` are the user's known-good ones. ``model`` answers prompts about ``subject``. ``related`` holds trials
    whose configs are of this space, and whose latencies are not this kernel's. ``parallel`` is how many configs are
    compiled at once: a batch of fewer leaves compilers idle, one of more makes a search choose with less knowledge.
    ``second_stage`` names the search that follows a round with the model; None is the default search. ``fallback`` is
    one of ``FALLBACKS``. ``max_configs`` is how many configs will be measured at most, None where nobody knows.
    """

    configs: tuple[Config, ...] = ()
    model: Submit | None = None
    subject: Subject = Subject()
    related: Related = ()
    parallel: int = 1
    second_stage: str | None = None
    fallback: str = FALLBACKS[0]
    max_configs: int | None = None

    def at_most(self, size: int) -> int:
        """A start of ``size`` configs, or a fifth of ``max_configs`` where that is less."""
        return size if self.max_configs is None else min(size, self.max_configs // 5)


class Search(Protocol):
    """What every search implements.

    What some have besides: ``uses_model`` (a class attribute) is True where the search asks the context's model, and
    ``with_rounds(n)`` is then the same search with another number of rounds; ``used_related`` holds the related trials
    of the context that have a say in what it measures.
    """

    @classmethod
    def preset(cls, effort: Effort, context: Context) -> Self:
        """The search at the sizes of ``effort`` (QUICK or FULL)."""

    def propose(self, space: ConfigSpace, rng: random.Random, prior: Sequence[Trial] = ()) -> Proposals:
        """Yield configs to measure, receive their trials; return when nothing more is worth measuring.

        ``prior`` holds trials known beforehand (an earlier run's, user seeds'), which are never proposed again.
        """


SEARCHES = {
    "FiniteSearch": "pytest_kerneltune.search.sampling",
    "RandomSearch": "pytest_kerneltune.search.sampling",
    "LFBOPatternSearch": "pytest_kerneltune.search.forest",
    "PatternSearch": "pytest_kerneltune.search.pattern",
    "LFBOTreeSearch": "pytest_kerneltune.search.forest",
    "DifferentialEvolutionSearch": "pytest_kerneltune.search.evolution",
    "DESurrogateHybrid": "pytest_kerneltune.search.evolution",
    "GaussianProcessSearch": "pytest_kerneltune.search.surrogate",
    "LLMGuidedSearch": "pytest_kerneltune.search.guided",
    "LLMSeededSearch": "pytest_kerneltune.search.seeded",
    "LLMSeededLFBOTreeSearch": "pytest_kerneltune.search.seeded",
}
"""Name to the module that holds the class of that name."""


def search_class(name: str) -> Any:
    """The search class called ``name``; raises UsageError that lists the names."""
    if name not in SEARCHES:
        raise UsageError(f"unknown search {name!r}; known: {', '.join(SEARCHES)}")
    return getattr(import_module(SEARCHES[name]), name)


def asks_model(name: str) -> bool:
    """Whether the search called ``name`` asks a language model; raises UsageError that lists the names."""
    return bool(getattr(search_class(name), "uses_model", False))


def second_stages() -> list[str]:
    """The names of the searches that can follow a round with a language model: those that ask none themselves."""
    return [name for name in SEARCHES if not asks_model(name)]


def create(name: str, effort: Effort, context: Context) -> Search:
    """The search called ``name`` at the sizes of ``effort``; raises UsageError that lists the names."""
    search: Search = search_class(name).preset(effort, context)
    return search
