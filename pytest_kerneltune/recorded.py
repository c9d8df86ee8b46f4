"""Recorded search spaces: what every config of a kernel took, so that searches can be tried without the kernel.

A space is ``NAME.json.gz``, one JSON object::

    {"name": "tiny",                              with any facts on what was recorded, and how
     "params": {"tile": [8, 16], "unroll": [1, 2, 3]},    name to ordered values
     "code": [0, 1, 5],                           the recorded configs, each as one number
     "time": [1.5, null, 0.5],                    their latencies in ms, null where they failed
     "fail": {"1": "wrong"}}                      why, by row; the reasons are the keys of FAILURES

A code is made of the positions of a config's values as mixed-radix digits, the first parameter's the most significant.
``NAME.reps.npz`` beside it, where there is one, holds the array ``rep``: a row for each code, with the deviations of
repeated readings from the latency, in 1/10,000 of it.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any
from zipfile import BadZipFile, ZipFile

from pytest_kerneltune.disk import regular
from pytest_kerneltune.errors import SpaceError, StoreError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, power_of_two
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

SUFFIX = ".json.gz"
REPEATS_SUFFIX = ".reps.npz"

DEVIATION = 1e-4
"""The unit of deviations, as a fraction of the latency."""

FAILURES: Mapping[str, Status] = {
    "compile": Status.COMPILE_ERROR,
    "compile_timeout": Status.COMPILE_TIMEOUT,
    "shared_memory": Status.OUT_OF_RESOURCES,
    "runtime": Status.RUNTIME_ERROR,
    "run_timeout": Status.RUN_TIMEOUT,
    "crash": Status.CRASH,
    "wrong": Status.WRONG,
}
"""What a file says of a config that failed, and what a trial says."""

_SPACE_BYTES = 128 << 20
_REPEATS_BYTES = 512 << 20
"""No larger files are read; both are meant unpacked."""

_REPEATS = "rep"
_MALFORMED = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)


class RecordedSpace:
    """A search space whose every config was measured before, replayed from a file (see the module).

    A config that is not recorded breaks a static constraint: ``space`` refuses it. ``trials`` maps codes to status and
    latency in ms (inf: it failed), in the order of the rows of ``repeats``, the file of repeated readings.
    Raises SpaceError where ``values`` are none of a space.
    """

    def __init__(
        self,
        name: str,
        values: Mapping[str, Sequence[Any]],
        trials: Mapping[int, tuple[Status, float]],
        repeats: Path | None = None,
    ) -> None:
        self.name = name
        columns = {parameter: [as_value(v) for v in column] for parameter, column in values.items()}
        self.space = ConfigSpace({parameter: _kind(column) for parameter, column in columns.items()}, self._recorded)
        self.latencies = sorted(latency for _, latency in trials.values() if math.isfinite(latency))
        """The finite latencies in ms, ascending."""
        self._weights = list(code_weights(columns).items())
        self._trials = trials
        self._repeats = repeats

    @classmethod
    def load(cls, path: Path) -> RecordedSpace:
        """Raises StoreError that names the file where it is no such space, or none of its configs worked."""
        repeats = path.with_name(path.name.removesuffix(SUFFIX) + REPEATS_SUFFIX)
        try:
            data = json.loads(_unpacked(path))
            name, values, trials = str(data["name"]), _columns(data["params"]), _trials(data)
            _check_codes(trials, math.prod(map(len, values.values())))
            recorded = cls(name, values, trials, repeats if repeats.exists() else None)
        except KeyError as error:
            raise StoreError(f"{path} is not a recorded space: {error} is missing or unknown") from error
        except (*_MALFORMED, SpaceError) as error:
            raise StoreError(f"{path} is not a recorded space: {error}") from error
        if not recorded.latencies:
            raise StoreError(f"{path} is of no use: none of its configs worked")
        return recorded

    def __len__(self) -> int:
        return len(self._trials)

    @property
    def best_ms(self) -> float:
        return self.latencies[0]

    @property
    def worst_ms(self) -> float:
        """The latency of the slowest config that worked."""
        return self.latencies[-1]

    def measure(self, config: Config) -> Trial:
        """The recorded trial of an allowed config."""
        return Trial(config, *self._trials[self._code(config)])

    @property
    def has_repeats(self) -> bool:
        """Whether repeated readings were recorded; raises StoreError where their file cannot be read."""
        return self._deviations is not None

    def draw(self, config: Config, draws: int, rng: random.Random) -> float:
        """The mean in ms of ``draws`` of the config's repeated readings, each drawn from all of them.

        Its latency itself where there are no repeats; inf where it failed. Raises StoreError where the file of
        repeats cannot be read.
        """
        code = self._code(config)
        latency = self._trials[code][1]
        if self._deviations is None or not math.isfinite(latency):
            return latency
        deviations = self._deviations[self._rows[code]].tolist()
        return latency * (1 + DEVIATION * fmean(rng.choice(deviations) for _ in range(draws)))

    @cached_property
    def _deviations(self) -> Any:
        """The array of the file of repeats; None without one."""
        if self._repeats is None:
            return None
        try:
            found = _repeated(self._repeats)
        except (*_MALFORMED, KeyError, NotImplementedError, RuntimeError, BadZipFile) as error:
            raise StoreError(f"{self._repeats} holds no repeated readings: {error}") from error
        if found.ndim != 2 or len(found) != len(self) or found.shape[1] < 1:
            raise StoreError(f"{self._repeats} is of shape {found.shape}: not a row for each of {len(self)} configs")
        if found.dtype.kind not in "iu" or found.min() < -1 / DEVIATION:
            raise StoreError(f"{self._repeats} holds no deviations of readings: they are integers of at least -10000")
        return found

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {code: row for row, code in enumerate(self._trials)}

    def _recorded(self, config: Config) -> bool:
        return self._code(config) in self._trials

    def _code(self, config: Config) -> int:
        code = 0  # a loop: searches ask this hundreds of times for every config that they measure
        for name, weight in self._weights:
            code += weight(config[name])
        return code


def _unpacked(path: Path) -> bytes:
    """The content of a compressed file; raises what is in _MALFORMED."""
    with os.fdopen(regular.opened(path, os.O_RDONLY), "rb") as file, gzip.open(file) as unpacked:
        content = unpacked.read(_SPACE_BYTES + 1)
    if len(content) > _SPACE_BYTES:
        raise ValueError(f"it is larger than {_SPACE_BYTES >> 20} MiB")
    return content


def _repeated(path: Path) -> Any:
    """The array of a file of repeats; raises what is in _MALFORMED, or KeyError, BadZipFile and what zipfile adds."""
    import numpy as np

    with os.fdopen(regular.opened(path, os.O_RDONLY), "rb") as file:
        with ZipFile(file) as members:
            if members.getinfo(f"{_REPEATS}.npy").file_size > _REPEATS_BYTES:
                raise ValueError(f"it is larger than {_REPEATS_BYTES >> 20} MiB")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[_REPEATS])  # bytes, where the member is no array


def _columns(values: Any) -> dict[str, list[Any]]:
    """The values of each parameter; raises ValueError where these are none."""
    if not isinstance(values, dict) or not all(isinstance(column, list) for column in values.values()):
        raise ValueError("params are not lists of values by name")
    return values


def code_weights(columns: Mapping[str, Sequence[Any]]) -> dict[str, Callable[[Any], int]]:
    """What each value of a parameter adds to the code of a config; it raises KeyError for any other value."""
    weights: dict[str, Callable[[Any], int]] = {}
    stride = math.prod(map(len, columns.values()))
    for name, column in columns.items():
        stride //= max(1, len(column))
        weights[name] = _weight(column, stride)
    return weights


def _weight(column: Sequence[Any], stride: int) -> Callable[[Any], int]:
    by_value = {value: place * stride for place, value in enumerate(column)}
    if len(by_value) == len(column):
        return by_value.__getitem__
    by_text = {json.dumps(value): place * stride for place, value in enumerate(column)}  # where 1, 1.0 and True differ
    return lambda value: by_text[json.dumps(value)]


def as_value(value: Any) -> Any:
    """A parameter's value as configs have it: JSON turned its tuples into lists."""
    return tuple(map(as_value, value)) if isinstance(value, list | tuple) else value


def _trials(data: Mapping[str, Any]) -> dict[int, tuple[Status, float]]:
    """Status and latency by code. Raises KeyError, TypeError or ValueError where ``data`` are malformed."""
    failed = {int(row): FAILURES[reason] for row, reason in data["fail"].items()}
    trials = {}
    for row, (code, latency) in enumerate(zip(data["code"], data["time"], strict=True)):
        if latency is None:
            trials[code] = failed.get(row, Status.RUNTIME_ERROR), math.inf
        elif row in failed or isinstance(latency, bool) or not 0 < latency < math.inf:
            raise ValueError(f"row {row} has the latency {latency}" + (" although it failed" if row in failed else ""))
        else:
            trials[code] = Status.OK, float(latency)
    if len(trials) != len(data["code"]):
        raise ValueError("a config is recorded twice")
    return trials


def _check_codes(codes: Iterable[Any], size: int) -> None:
    for code in codes:
        if type(code) is not int or not 0 <= code < size:
            raise ValueError(f"{code!r} is the code of none of the {size} configs")


def _kind(values: Sequence[Any]) -> Parameter:
    """The narrowest kind of parameter with these ordered values."""
    if values and all(type(v) is int for v in values):
        low, high = values[0], values[-1]
        if high - low + 1 == len(values) and list(values) == list(range(low, high + 1)):
            return integer(low, high)
        if low > 0 and low & (low - 1) == 0 and list(values) == [low << i for i in range(len(values))]:
            return power_of_two(low, high)
    if [v for v in values if isinstance(v, bool)] == [False, True] and len(values) == 2:
        return boolean()
    return choice(*values)
