"""What is stored of a kernel's measurement, and how it is made of fresh readings."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, TypeAlias

from pytest_kerneltune.statistics import log_ratios, robust_deviation
from pytest_kerneltune.trial import Config

Blocks: TypeAlias = Mapping[str, Sequence[float]]
"""Arm name ("winner", "baseline" or a yardstick) to readings in ms; readings i of all arms were taken side by side."""

YARDSTICKS = ("reference", "calibration")
"""Arms that a latency is divided by."""


@dataclass(frozen=True)
class Baseline:
    """What is stored of a kernel's measurement.

    ``yardsticks`` are latencies in ms and ``ratios`` medians over the blocks of the kernel's latency over the
    yardstick's, both by the yardstick's name. ``noise`` is the relative standard deviation (robust) of one block's
    ratio, or latency where there is no yardstick, and ``blocks`` their number. ``contract`` are the facts without
    which numbers cannot be compared, ``recorded`` those that only inform.
    """

    config: Config
    latency_ms: float
    yardsticks: Mapping[str, float]
    ratios: Mapping[str, float]
    noise: float
    blocks: int
    contract: Mapping[str, str]
    recorded: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers are rounded to 4 significant digits."""
        return {
            "config": dict(self.config),
            "latency_ms": _rounded(self.latency_ms),
            "yardsticks": {name: _rounded(value) for name, value in self.yardsticks.items()},
            "ratios": {name: _rounded(value) for name, value in self.ratios.items()},
            "noise": _rounded(self.noise),
            "blocks": self.blocks,
            "contract": dict(self.contract),
            "recorded": dict(self.recorded),
        }

    @classmethod
    def from_json(cls, data: Any) -> Baseline:
        """The inverse of :meth:`to_json`; raises ValueError naming the field on anything it could not have written."""
        row = _object("baseline", data)
        names = {f.name for f in fields(cls)}
        for word, wrong in (("lacks", names - set(row)), ("has the unknown", set(row) - names)):
            if wrong:
                raise ValueError(f"baseline {word} {', '.join(sorted(wrong))}")
        if isinstance(row["blocks"], bool) or not isinstance(row["blocks"], int) or row["blocks"] < 1:
            raise ValueError(f"blocks must be a positive integer, not {row['blocks']!r}")
        baseline = cls(
            config=_object("config", row["config"]),
            latency_ms=_number("latency_ms", row["latency_ms"]),
            yardsticks=_numbers("yardsticks", row["yardsticks"]),
            ratios=_numbers("ratios", row["ratios"]),
            noise=_number("noise", row["noise"], zero=True),
            blocks=row["blocks"],
            contract=_texts("contract", row["contract"]),
            recorded=_texts("recorded", row["recorded"]),
        )
        if baseline.yardsticks.keys() != baseline.ratios.keys():
            raise ValueError("ratios must name the same yardsticks as yardsticks")
        return baseline


def measured_baseline(
    blocks: Blocks, config: Config, contract: Mapping[str, str], recorded: Mapping[str, str]
) -> Baseline:
    """The baseline that a fresh measurement of ``config`` (arm "winner") makes; raises ValueError as judge() does."""
    count = block_count(blocks)
    winner = blocks["winner"]
    paired = {name: log_ratios(winner, blocks[name]) for name in YARDSTICKS if name in blocks}
    noises = [robust_deviation(logs) for logs in paired.values()]
    return Baseline(
        config=config,
        latency_ms=median(winner),
        yardsticks={name: median(blocks[name]) for name in paired},
        ratios={name: math.exp(median(logs)) for name, logs in paired.items()},
        noise=min(noises, default=robust_deviation([math.log(reading) for reading in winner])),
        blocks=count,
        contract=contract,
        recorded=recorded,
    )


def block_count(blocks: Blocks) -> int:
    """The number of blocks; raises ValueError where arms differ in it or a reading is not a positive number."""
    count = len(blocks.get("winner", ()))
    for arm, readings in blocks.items():
        if len(readings) != count or not all(0 < reading < math.inf for reading in readings):
            raise ValueError(f"blocks[{arm!r}] must hold {count} positive readings, as many as the winner")
    if not count:
        raise ValueError("blocks['winner'] holds no reading")
    return count


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


def _texts(name: str, value: Any) -> dict[str, str]:
    for key, text in _object(name, value).items():
        if not isinstance(text, str):
            raise ValueError(f"{name}.{key} must be a string, not {text!r}")
    return _object(name, value)
