"""What a search exchanges with the driver: batches of configs one way, trials the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

Config: TypeAlias = Mapping[str, Any]
"""Parameter name to value; values are JSON scalars or tuples of them."""

Clock: TypeAlias = Literal["wall", "thread", "cuda"]
"""What times a kernel: wall clock, CPU time of the launching thread, or CUDA events."""


class Status(StrEnum):
    """How the attempt to compile, check and time a config ended."""

    OK = "ok"
    COMPILE_ERROR = "compile error"
    COMPILE_TIMEOUT = "compile timeout"
    OUT_OF_RESOURCES = "out of resources"
    RUNTIME_ERROR = "runtime error"
    RUN_TIMEOUT = "run timeout"
    CRASH = "crash"
    WRONG = "wrong output"


@dataclass(frozen=True)
class Trial:
    """One attempt at one config.

    ``latency_ms`` is inf unless ``status`` is OK. ``samples_ms`` are the raw readings it summarises, ``reason`` says
    why a failure failed, ``log`` is what compiler and kernel printed, ``stage`` names the part of the search that
    proposed the config, ``compile_s`` and ``measure_s`` are wall seconds, ``at_s`` those from the search's start until
    this was known. ``demand`` is the largest share of a limit of the device (shared memory, threads, registers) that
    the compiled config asks for: above 1 it cannot be launched, 0 where nothing is known. ``usage`` holds what is known
    of the compiled code: "shared_bytes" and "threads" of a block, "registers" and "stack_bytes" of a thread.
    """

    config: Config
    status: Status = Status.OK
    latency_ms: float = math.inf
    samples_ms: tuple[float, ...] = ()
    reason: str = ""
    log: str = field(default="", repr=False)
    stage: str = ""
    compile_s: float = 0.0
    measure_s: float = 0.0
    at_s: float = 0.0
    demand: float = 0.0
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status is Status.OK

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the fields that hold their default; latency inf is left out."""
        out: dict[str, Any] = {"config": dict(self.config), "status": self.status.value}
        if math.isfinite(self.latency_ms):
            out["latency_ms"] = self.latency_ms
        for name in ("samples_ms", "reason", "log", "stage", "compile_s", "measure_s", "at_s", "demand", "usage"):
            value = getattr(self, name)
            if value:
                out[name] = _plain(value)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of :meth:`to_json`; raises ValueError, TypeError or KeyError on anything else."""
        return cls(
            config=dict(data["config"]),
            status=Status(data["status"]),
            latency_ms=float(data.get("latency_ms", math.inf)),
            samples_ms=tuple(map(float, data.get("samples_ms", ()))),
            reason=str(data.get("reason", "")),
            log=str(data.get("log", "")),
            stage=str(data.get("stage", "")),
            compile_s=float(data.get("compile_s", 0.0)),
            measure_s=float(data.get("measure_s", 0.0)),
            at_s=float(data.get("at_s", 0.0)),
            demand=float(data.get("demand", 0.0)),
            usage={str(name): int(value) for name, value in dict(data.get("usage", {})).items()},
        )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


class Batch(tuple[Config, ...]):
    """Configs to measure together, with the stage of the search they belong to and a note for the report.

    ``retime`` asks that so many of the fastest configs of the run, this batch's among them, are timed once more side by
    side after it; the trials of those of earlier batches are sent behind this batch's. ``counts`` are added up over
    the run for the report.

    ``enough`` is how many trials the search needs before it can go on: where so many of the configs under way (this
    batch's and what earlier ones left) are known, the driver may send these, in the order in which they were measured,
    and leave the others for a later batch. With None every config of the batch is answered first. A batch with
    ``enough`` may be empty: the search waits for what is under way. A search may yield any sequence of configs; it
    yields a Batch where it has something to say about them. Who drives a search may ignore all of it.
    """

    stage: str
    note: str
    retime: int
    counts: Mapping[str, int]
    enough: int | None

    def __new__(
        cls,
        configs: Iterable[Config],
        stage: str = "",
        note: str = "",
        retime: int = 0,
        counts: Mapping[str, int] = MappingProxyType({}),
        enough: int | None = None,
    ) -> Batch:
        batch = super().__new__(cls, configs)
        batch.stage, batch.note, batch.retime, batch.counts = stage, note, retime, counts
        batch.enough = enough
        return batch


@dataclass(frozen=True)
class Budget:
    """Stop searching a kernel after this many wall seconds or attempted configs, or at this latency in ms.

    None is no limit.
    """

    seconds: float | None = None
    configs: int | None = None
    target_ms: float | None = None


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The successful trial of least latency, the earliest among equals; None if nothing succeeded."""
    return min((t for t in trials if t.ok), key=lambda t: t.latency_ms, default=None)
