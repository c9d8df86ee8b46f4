"""What one run found out about one kernel, as plain values.

An outcome holds JSON values only: it crosses from an xdist worker to the controller on a test report, and every
report is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageSummary:
    """What one stage of a search tried; ``best_ms`` is None where all of it failed."""

    stage: str
    configs: int
    failed: int
    best_ms: float | None
    note: str = ""


@dataclass(frozen=True)
class ModelSummary:
    """What a language model did for one search.

    ``calls`` are the requests that ended, ``cached`` of them answered by an earlier run's reply, ``failed`` not at all.
    Tokens are None where no provider said, ``seconds`` are wall seconds of waiting for replies. Of the configs in its
    replies so many were ``proposed``, ``valid`` in the space, and ``new``, not measured before (a budget may end before
    they are). Of the ``fastest`` configs of the search (ten, or as many as worked) it proposed ``among_fastest``;
    ``found_winner`` says whether the tuned config is one of its own.
    """

    label: str
    calls: int = 0
    cached: int = 0
    failed: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    seconds: float = 0.0
    proposed: int = 0
    valid: int = 0
    new: int = 0
    fastest: int = 0
    among_fastest: int = 0
    found_winner: bool = False


@dataclass(frozen=True)
class SearchSummary:
    """How the tuned config was found.

    ``source`` is "search", "cache", "baseline" or "default"; ``attempts`` counts every config tried, ``failures``
    those that failed by status; ``seconds`` are wall seconds of searching in this run (0 on a cache hit);
    ``stopped`` says why the search ended; ``messages`` are one-line remarks on the language model and the cache;
    ``model`` is the language model's account, None where the search asked none. ``began`` is when the search began
    (ISO 8601, UTC) and ``engine`` where its time went (see account.Account.between), empty where nothing was searched.
    """

    source: str
    algorithm: str = ""
    effort: str = ""
    seed: int = 0
    attempts: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str = ""
    stages: tuple[StageSummary, ...] = ()
    messages: tuple[str, ...] = ()
    model: ModelSummary | None = None
    began: str = ""
    engine: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VerdictSummary:
    """The verdict: ``kind`` is one of gate.VerdictKind's values, or "wrong", "failed" (nothing could be measured)
    or "checked" (ran once, was not timed). Changes are fractions (0.05 is 5% slower than the baseline), each an
    estimate with its confidence interval [low, high]; None where unknown. ``summary`` is one line, ``details`` the
    whole text for the user, ``fails`` whether a test that uses the kernel fails. ``basis`` says what the kernel was
    compared with: "base" (the code of another commit, run beside it), "baseline" (what is stored), "alone" (stored,
    without a yardstick: weak), "" for nothing; ``against`` names that in words, a commit last. ``remarks`` are one-line
    facts about the comparison.
    """

    kind: str
    summary: str
    details: str = ""
    fails: bool = False
    change: tuple[float, float, float] | None = None
    code_change: tuple[float, float, float] | None = None
    search_change: tuple[float, float, float] | None = None
    threshold: float | None = None
    blame: str = ""
    basis: str = ""
    remarks: tuple[str, ...] = ()
    against: str = ""


@dataclass(frozen=True)
class Outcome:
    """One kernel in one run.

    ``file`` is the file the kernel belongs to, relative to the root directory; ``name`` its name with its parameters,
    "softmax[n1024]". ``latency_ms`` and ``reference_ms`` are None where nothing was timed. ``baseline_file`` and
    ``baseline`` are where and what ``--update-baselines`` would write (None: nothing fit to be a baseline).
    ``previous_ms`` is the stored baseline's latency, ``trials`` the measured configs (``Trial.to_json``) and
    ``instrument`` what was measured of the clock when this process first used it (``Instrument.to_json``).
    ``self_test`` is what the gate's self-test found, ``is_rerun`` whether this is a further measurement by the same
    process, ``young`` the number of sessions of a young baseline (0: mature, or none).
    """

    file: str
    name: str
    kind: str
    device: str
    clock: str
    fingerprint: str
    config: Mapping[str, Any] | None
    latency_ms: float | None
    reference_ms: float | None
    search: SearchSummary
    verdict: VerdictSummary
    previous_ms: float | None = None
    method: str = ""
    baseline_file: str = ""
    baseline: Mapping[str, Any] | None = None
    trials: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    instrument: Mapping[str, Any] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)
    is_rerun: bool = False
    young: int = 0

    @property
    def id(self) -> str:
        return f"{self.file}::{self.name}"

    @property
    def speedup(self) -> float | None:
        """Reference latency over latency; None without both."""
        return self.reference_ms / self.latency_ms if self.reference_ms and self.latency_ms else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`."""
        search = {**data["search"], "stages": tuple(StageSummary(**s) for s in data["search"]["stages"])}
        search["messages"] = tuple(search["messages"])
        search["model"] = ModelSummary(**search["model"]) if search.get("model") else None
        verdict: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["verdict"].items()}
        plain = {**data, "search": SearchSummary(**search), "verdict": VerdictSummary(**verdict)}
        return cls(**{**plain, "trials": tuple(data["trials"]), "warnings": tuple(data["warnings"])})
