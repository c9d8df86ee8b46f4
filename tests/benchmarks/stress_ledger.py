"""What processes did to a cache, written down outside of it, and what must then be true of the cache.

One line of JSON an event, appended by a single write, so that it is whole however its process ends: "want" (a
fingerprint, with so many trials), "waits", "enters" (its turn has come), "before" and "after" a trial was recorded,
"stored", "leaves", "warns", "fails"; and of the process that watches: "kills", "stops", "continues".
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

_NAME = re.compile(r"[0-9a-f]{16,}|\d{2,}")  # of a fingerprint, a journal or a process


class Ledger:
    """Appends events to ``path``; ``who`` is the number of the process that writes."""

    def __init__(self, path: Path, who: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._who = who

    def write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, "who": self._who, "at": time.monotonic(), **facts}) + "\n"
        os.write(self._file, line.encode())


def read(path: Path) -> list[Event]:
    """All events, in the order in which they were written."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Turn:
    """One process's turn at a fingerprint; times are those of the monotonic clock, inf for never."""

    who: int
    fingerprint: str
    trials: int
    wanted_at: float
    entered_at: float = inf
    stored_at: float = inf
    left_at: float = inf
    resumed: int = 0
    recorded: list[str] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Take over what a later event of the same process says."""
        match event["event"]:
            case "enters":
                self.entered_at, self.resumed = event["at"], event["interrupted"]
            case "before":
                self.recorded.append(event["trial"])
            case "stored":
                self.stored_at = event["at"]
            case "leaves":
                self.left_at = event["at"]


@dataclass(frozen=True)
class Limits:
    """What is asked of a run: seconds that a turn may be waited for, and what cannot be asked when files go missing.

    ``loses`` says that the disk was full or the directory removed: trials may then be lost, repeated and warned of.
    """

    wait_s: float
    loses: bool = False


class Judgement:
    """Counts of what happened, and the violations.

    ``found`` are the trials that the cache holds at the end, each fingerprint's in order.
    """

    def __init__(self, events: Sequence[Event], found: Mapping[str, Sequence[str]], limits: Limits) -> None:
        self.counts: Counter[str] = Counter()
        self.warnings = Counter(_NAME.sub("...", e["text"]) for e in events if e["event"] == "warns")
        self.violations: list[str] = []
        self.longest_wait_s = 0.0
        self._events, self._found, self._limits = events, found, limits
        self._kills: dict[int, float] = {e["who"]: e["at"] for e in events if e["event"] == "kills"}
        self._stops = list(_stops(events))
        self._turns = _turns(events, self._kills)
        self._count()
        self._judge_trials()
        self._judge_turns()
        self._judge_waits()
        self._judge_words()

    def _count(self) -> None:
        names = Counter(event["event"] for event in self._events)
        for name in ("hits", "want", "waits", "enters", "after", "stored", "kills", "stops", "warns", "fails"):
            self.counts[name] = names[name]
        self.counts["turns that tuned"] = sum(bool(turn.recorded) for turn in self._turns)
        self.counts["turns that resumed a killed search"] = sum(turn.resumed > 0 for turn in self._turns)
        self.counts["killed while tuning"] = sum(
            turn.who in self._kills and turn.left_at == self._kills[turn.who] for turn in self._turns if turn.recorded
        )
        self.counts["trials in the cache"] = sum(map(len, self._found.values()))

    def _judge_trials(self) -> None:
        """Nothing lost but what was in flight at a kill, nothing foreign, nothing twice."""
        begun = {(e["fingerprint"], e["trial"]): e["who"] for e in self._events if e["event"] == "before"}
        done = {(e["fingerprint"], e["trial"]) for e in self._events if e["event"] == "after"}
        kept = Counter((fingerprint, trial) for fingerprint, trials in self._found.items() for trial in trials)
        lost = done - kept.keys()
        in_flight = Counter(who for trial, who in begun.items() if trial not in done)
        self.counts["trials in flight at a kill"] = in_flight.total()
        self.counts["of these missing"] = sum(trial not in kept for trial in begun.keys() - done)
        self.counts["lost trials"] = len(lost)
        if not self._limits.loses:
            self._violated(f"{len(lost)} recorded trials are lost", lost)
            self._violated("trials in flight without a kill", {who for who in in_flight if who not in self._kills})
            self._violated("more than one trial in flight", {who for who, number in in_flight.items() if number > 1})
        self._violated("trials that nobody made", kept.keys() - begun.keys())
        self._violated("trials that are there twice", {trial for trial, number in kept.items() if number > 1})

    def _judge_turns(self) -> None:
        """Two at once never, but after a stop; nothing that was stored is tuned again."""
        for fingerprint in sorted({turn.fingerprint for turn in self._turns}):
            turns = sorted((t for t in self._turns if t.fingerprint == fingerprint), key=lambda turn: turn.entered_at)
            for earlier, later in pairwise(turn for turn in turns if turn.entered_at < inf):
                if later.entered_at < earlier.left_at:
                    self._judge_overlap(earlier, later)
            for turn in turns:
                known = max((t.trials for t in turns if t.stored_at < turn.entered_at), default=0)
                if turn.recorded and known >= turn.trials:
                    self._judge_repetition(turn)

    def _judge_overlap(self, earlier: Turn, later: Turn) -> None:
        """Either may have been stopped when it had its lease: a turn begins before the process can say so."""
        if any(self._stopped(turn.who, turn.wanted_at, later.entered_at) for turn in (earlier, later)):
            self.counts["two at once after a stop"] += 1
        elif not self._limits.loses:
            self._violated("two at once", [(earlier, later)])

    def _judge_repetition(self, turn: Turn) -> None:
        """Who was stopped after it had looked into the cache may not know what was stored meanwhile."""
        if self._stopped(turn.who, turn.wanted_at, turn.entered_at):
            self.counts["tuned again after a stop"] += 1
        else:
            self.counts["tuned again"] += 1
            if not self._limits.loses:
                self._violated("tuned again what was stored", [turn])

    def _judge_waits(self) -> None:
        end: float = self._events[-1]["at"]
        for turn in self._turns:
            until = min(turn.entered_at, self._kills.get(turn.who, end))
            if not self._stopped(turn.who, turn.wanted_at, until):
                self.longest_wait_s = max(self.longest_wait_s, until - turn.wanted_at)
        if self.longest_wait_s > self._limits.wait_s:
            self._violated(f"waited for {self.longest_wait_s:.1f} s", ["no longer than", self._limits.wait_s])

    def _judge_words(self) -> None:
        was_stopped = {who for who, _, _ in self._stops}
        said = [event for event in self._events if event["event"] == "warns"]
        if not self._limits.loses:
            self._violated("warnings", [event["text"] for event in said if event["who"] not in was_stopped])
        self._violated("failures", [event["text"] for event in self._events if event["event"] == "fails"])

    def _stopped(self, who: int, since: float, until: float) -> bool:
        return any(who == other and start < until and end > since for other, start, end in self._stops)

    def _violated(self, what: str, examples: Any) -> None:
        if examples:
            self.violations.append(f"{what}, such as {[str(each) for each in examples][:3]}")


def _turns(events: Sequence[Event], kills: Mapping[int, float]) -> list[Turn]:
    found, current = [], {}
    for event in events:
        if event["event"] == "want":
            turn = Turn(event["who"], event["fingerprint"], event["trials"], event["at"])
            turn.left_at = kills.get(turn.who, inf)
            found.append(turn)
            current[turn.who] = turn
        elif event["who"] in current:
            current[event["who"]].note(event)
    return found


def _stops(events: Sequence[Event]) -> Iterator[tuple[int, float, float]]:
    """Who was stopped, from when to when."""
    since: dict[int, float] = {}
    for event in events:
        if event["event"] == "stops":
            since[event["who"]] = event["at"]
        elif event["event"] == "continues":
            yield event["who"], since.pop(event["who"]), event["at"]
    yield from ((who, at, inf) for who, at in since.items())
