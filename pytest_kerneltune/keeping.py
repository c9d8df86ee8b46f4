"""What the cache keeps of a search, and what of that is of use to another run."""

from __future__ import annotations

import platform
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from pytest_kerneltune.cache import Entry, Finalist, Run, Verification
from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.finals import Placed
from pytest_kerneltune.outcome import SearchSummary
from pytest_kerneltune.trial import Config, Trial
from pytest_kerneltune.workload import Workload

_LABEL_LIMIT = 1000  # characters


@dataclass(frozen=True)
class Choice:
    """A kernel's config (None: nothing works), how it was found, and the trials that led to it.

    ``failure`` says why there is none although configs may work; empty otherwise.
    """

    config: Config | None
    summary: SearchSummary
    trials: tuple[Trial, ...] = ()
    failure: str = ""


def from_cache(workload: Workload, entry: Entry) -> Choice:
    """What ``entry`` knows; its winner is None where it is not of the kernel's space."""
    try:
        config = None if entry.winner is None else workload.space.canonical(entry.winner)
    except SpaceError:
        config = None
    trials = _latest(entry.trials)
    summary = SearchSummary(
        "cache",
        algorithm=entry.last.algorithm,
        effort=entry.last.effort,
        seed=entry.last.seed,
        attempts=len(trials),
        failures=failures(trials),
    )
    return Choice(config, summary, trials)


def _latest(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Each config once, its last trial."""
    return tuple({repr(sorted(trial.config.items())): trial for trial in trials}.values())


def usable(workload: Workload, trials: Sequence[Trial]) -> list[Trial]:
    """Each config of the space once, its last trial; in the order in which they were measured."""
    space = workload.space
    found = [replace(t, config=space.canonical(t.config)) for t in trials if space.contains(t.config)]
    return list({space.key(t.config): t for t in found}.values())


def entry_of(workload: Workload, run: Run, finalists: Sequence[Placed]) -> Entry:
    """The entry of a search and its finals, best first; every finalist's output was checked before it was timed."""
    verification = Verification(
        created=run.created,
        checked=getattr(workload.kernel, "reference", None) is not None,
        finalists=tuple(Finalist(f.config, f.readings_ms) for f in finalists),
    )
    return Entry(
        fingerprint=workload.fingerprint,
        kernel=workload.name,
        runs=(run,),
        winner=finalists[0].config if finalists else None,
        family=workload.family,
        inputs=workload.description.inputs,
        verification=verification if finalists else None,
    )


def label(entry: Entry, device: str) -> str:
    """What a related entry is of, in a line for a language model; anybody may have written the entry."""
    facts = [entry.kernel, *entry.inputs, *([entry.device] if entry.device not in ("", device) else [])]
    return "".join(c if c.isprintable() else " " for c in "; ".join(facts)[:_LABEL_LIMIT])


def failures(trials: Sequence[Trial]) -> dict[str, int]:
    """How many trials failed, by status."""
    return dict(Counter(str(t.status.value) for t in trials if not t.ok))


def host_hash() -> str:
    """What tells this machine from others, and does not say its name."""
    return sha256(f"{socket.gethostname()}:{platform.machine()}".encode()).hexdigest()[:12]
