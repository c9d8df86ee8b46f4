"""What is stored of a kernel's measurements, and how it is made of fresh readings.

A baseline holds several sessions: an unchanged kernel reads differently in another process, by more than any number of
readings in one process tells, so what was read in several of them says how far readings may differ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean, median
from typing import Any, TypeAlias

from pytest_kerneltune.statistics import log_ratios, robust_deviation
from pytest_kerneltune.trial import Config

Blocks: TypeAlias = Mapping[str, Sequence[float]]
"""Arm name ("winner", "baseline", "base", ... or a yardstick) to readings in ms; readings i of all arms were taken side
by side."""

YARDSTICKS = ("reference", "calibration", "copy", "arithmetic")
"""Arms that a latency is divided by: the kernel's own reference, and work of ours that never changes."""

MOST_SESSIONS = 8
MOST_PAST = 20


@dataclass(frozen=True)
class StoredSession:
    """A kernel's measurement in one process.

    ``yardsticks`` are latencies in ms and ``ratios`` medians over the blocks of the kernel's latency over the
    yardstick's, both by the yardstick's name. ``noise`` is the relative standard deviation (robust) of one block's
    ratio, or latency where there is no yardstick, and ``blocks`` their number. ``environment`` are facts that may
    differ between comparable measurements, but are worth a word when they do (driver, versions); ``recorded`` those
    that only inform (date, commit).
    """

    latency_ms: float
    yardsticks: Mapping[str, float]
    ratios: Mapping[str, float]
    noise: float
    blocks: int
    environment: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers are rounded to 4 significant digits."""
        return {
            "latency_ms": _rounded(self.latency_ms),
            "yardsticks": {name: _rounded(value) for name, value in self.yardsticks.items()},
            "ratios": {name: _rounded(value) for name, value in self.ratios.items()},
            "noise": _rounded(self.noise),
            "blocks": self.blocks,
            "environment": dict(self.environment),
            "recorded": dict(self.recorded),
        }

    @classmethod
    def from_json(cls, data: Any) -> StoredSession:
        """The inverse of :meth:`to_json`; raises ValueError naming the field on anything it could not have written."""
        row = _members("session", data, cls, optional=("environment", "recorded"))
        if isinstance(row["blocks"], bool) or not isinstance(row["blocks"], int) or row["blocks"] < 1:
            raise ValueError(f"blocks must be a positive integer, not {row['blocks']!r}")
        session = cls(
            latency_ms=_number("latency_ms", row["latency_ms"]),
            yardsticks=_numbers("yardsticks", row["yardsticks"]),
            ratios=_numbers("ratios", row["ratios"]),
            noise=_number("noise", row["noise"], zero=True),
            blocks=row["blocks"],
            environment=_texts("environment", row.get("environment", {})),
            recorded=_texts("recorded", row.get("recorded", {})),
        )
        if session.yardsticks.keys() != session.ratios.keys():
            raise ValueError("ratios must name the same yardsticks as yardsticks")
        return session


@dataclass(frozen=True)
class Baseline:
    """What is stored of a kernel: the config, the sessions in which it was measured (oldest first, at least one, at
    most ``MOST_SESSIONS``), and what the numbers hold for.

    ``contract`` are the facts without which numbers cannot be compared. ``source`` is a digest of the kernel's source
    and all it reaches, ``code`` one of the compiled code and its launch; "" where unknown. ``past`` lists what this row
    was before it was accepted to be different, oldest first: facts as text.
    """

    config: Config
    contract: Mapping[str, str]
    sessions: tuple[StoredSession, ...]
    source: str = ""
    code: str = ""
    past: tuple[Mapping[str, str], ...] = ()

    @property
    def latency_ms(self) -> float:
        """The median of the sessions'."""
        return median(session.latency_ms for session in self.sessions)

    @property
    def yardsticks(self) -> dict[str, float]:
        """Latencies in ms of the yardsticks that all sessions have: medians."""
        return {name: median(s.yardsticks[name] for s in self.sessions) for name in self._common}

    @property
    def ratios(self) -> dict[str, float]:
        """The kernel's latency over each such yardstick's: geometric means."""
        return {name: math.exp(fmean(math.log(s.ratios[name]) for s in self.sessions)) for name in self._common}

    @property
    def recorded(self) -> Mapping[str, str]:
        """What informs about the last session."""
        return self.sessions[-1].recorded

    @property
    def _common(self) -> list[str]:
        return [name for name in self.sessions[-1].ratios if all(name in s.ratios for s in self.sessions)]

    def with_sessions(self, more: Sequence[StoredSession]) -> Baseline:
        """This baseline with ``more`` sessions of the same kernel; the oldest give way."""
        return replace(self, sessions=(*self.sessions, *more)[-MOST_SESSIONS:])

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "config": dict(self.config),
            "contract": dict(self.contract),
            "sessions": [session.to_json() for session in self.sessions],
            "source": self.source,
            "code": self.code,
            "past": [dict(fact) for fact in self.past],
        }

    @classmethod
    def from_json(cls, data: Any) -> Baseline:
        """The inverse of :meth:`to_json`; raises ValueError naming the field on anything it could not have written.

        Rows of schema 1, which held one measurement, are read, too.
        """
        if isinstance(data, Mapping) and "latency_ms" in data:
            data = _of_schema_1(data)
        row = _members("baseline", data, cls, optional=("source", "code", "past"))
        if not isinstance(row["sessions"], list) or not row["sessions"]:
            raise ValueError(f"sessions must be a list of at least one, not {row['sessions']!r:.80}")
        past = row.get("past", [])
        if not isinstance(past, list):
            raise ValueError(f"past must be a list, not {past!r:.80}")
        return cls(
            config=_object("config", row["config"]),
            contract=_texts("contract", row["contract"]),
            sessions=tuple(map(StoredSession.from_json, row["sessions"]))[-MOST_SESSIONS:],
            source=_text("source", row.get("source", "")),
            code=_text("code", row.get("code", "")),
            past=tuple(_texts("past", fact) for fact in past)[-MOST_PAST:],
        )


def measured_session(
    blocks: Blocks, environment: Mapping[str, str], recorded: Mapping[str, str], arm: str = "winner"
) -> StoredSession:
    """The session that a fresh measurement makes of ``arm``; raises ValueError as ``block_count`` does."""
    count = block_count(blocks)
    readings = blocks[arm]
    paired = {name: log_ratios(readings, blocks[name]) for name in YARDSTICKS if name in blocks}
    noises = [robust_deviation(logs) for logs in paired.values()]
    return StoredSession(
        latency_ms=median(readings),
        yardsticks={name: median(blocks[name]) for name in paired},
        ratios={name: math.exp(median(logs)) for name, logs in paired.items()},
        noise=min(noises, default=robust_deviation([math.log(reading) for reading in readings])),
        blocks=count,
        environment=environment,
        recorded=recorded,
    )


def measured_baseline(
    blocks: Blocks, config: Config, contract: Mapping[str, str], recorded: Mapping[str, str]
) -> Baseline:
    """The baseline of one session that a fresh measurement of ``config`` (arm "winner") makes."""
    return Baseline(config, contract, (measured_session(blocks, {}, recorded),))


def block_count(blocks: Blocks) -> int:
    """The number of blocks; raises ValueError where arms differ in it or a reading is not a positive number."""
    count = len(blocks.get("winner", ()))
    for arm, readings in blocks.items():
        if len(readings) != count or not all(0 < reading < math.inf for reading in readings):
            raise ValueError(f"blocks[{arm!r}] must hold {count} positive readings, as many as the winner")
    if not count:
        raise ValueError("blocks['winner'] holds no reading")
    return count


def _of_schema_1(data: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(data)
    kept: dict[str, Any] = {name: row.pop(name) for name in ("config", "contract") if name in row}
    return {**kept, "sessions": [row]}


def _members(what: str, data: Any, kind: type, optional: Sequence[str]) -> dict[str, Any]:
    row = _object(what, data)
    names = {f.name for f in fields(kind)}
    for word, wrong in (("lacks", names - set(row) - set(optional)), ("has the unknown", set(row) - names)):
        if wrong:
            raise ValueError(f"{what} {word} {', '.join(sorted(wrong))}")
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(name: str, value: Any, zero: bool = False) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value <= sys.float_info.max and (value > 0 or zero):
        return float(value)
    raise ValueError(f"{name} must be a finite number {'>= 0' if zero else '> 0'}, not {value!r}")


def _object(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError(f"{name} must be an object, not {value!r}")


def _numbers(name: str, value: Any) -> dict[str, float]:
    return {key: _number(f"{name}.{key}", number) for key, number in _object(name, value).items()}


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} must be a string, not {value!r}")


def _texts(name: str, value: Any) -> dict[str, str]:
    return {key: _text(f"{name}.{key}", text) for key, text in _object(name, value).items()}
