"""Entries as JSON Lines, a line for each trial, with all that is known of it: for analysis, training, other caches.

1. Each line stands for itself: kernel, inputs, device, search, config, what came of it. ``latency_ms`` is null for what
   failed.
2. ``run`` and ``trial`` number an entry's runs and a run's trials, from 0, so that lines may be shuffled.
3. The first line of an entry has a ``result``: winner, verification, and the runs that have no trials. Without it, as
   where somebody left lines out, the winner is the config of the lines with ``is_winner``.
4. What is read was perhaps written by others. A line is checked like an entry's file, bounded in length, and skipped
   with a word about it where it is none of these; nothing in it is a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from pytest_kerneltune import files
from pytest_kerneltune.cache import document
from pytest_kerneltune.cache.entry import MOST_TRIALS, Entry, Run, Verification
from pytest_kerneltune.cache.family import FINGERPRINT
from pytest_kerneltune.trial import Config, Trial

FORMAT = 1
"""The number in every line; a newer one is not read."""

LONGEST_LINE = 16 << 20
"""Bytes; a longer line is no trial."""

OnProblem = Callable[[str], None]
"""Told which line was skipped, and why."""

_HEAD = re.compile(rb'\{"format": 1, "fingerprint": "(%b)", ' % FINGERPRINT.pattern.encode())
_TOKEN = re.compile("(?:[0-9a-f]{16})?")
_RUN_FIELDS = ("algorithm", "effort", "seed", "created", "finished", "budget_seconds", "budget_configs", "token")
_TRIAL_FIELDS = (
    *("config", "status", "latency_ms", "samples_ms", "compile_s", "measure_s", "at_s", "stage", "reason", "log"),
    *("demand", "usage"),
)
_EMPTY = Trial({})


def exported(entry: Entry) -> Iterator[str]:
    """The lines of an entry, without their newlines."""
    first: dict[str, Any] | None = _result(entry)
    for number, run in enumerate(entry.runs):
        known = document.run_to_json(run)
        for place, trial in enumerate(run.trials):
            line = {
                "format": FORMAT,
                "fingerprint": entry.fingerprint,
                "kernel": entry.kernel,
                "family": entry.family,
                "inputs": list(entry.inputs),
                "device": run.origin.get("device", ""),
                "run": number,
                "trial": place,
                **_of_trial(trial),
                "is_winner": entry.winner is not None and trial.ok and trial.config == entry.winner,
                **{name: known[name] for name in (*_RUN_FIELDS, "origin")},
                "result": first,
            }
            first = None
            yield json.dumps(line, allow_nan=False)


def _of_trial(trial: Trial) -> dict[str, Any]:
    """All fields, also those that hold their default."""
    return {name: None if name == "latency_ms" else getattr(_EMPTY, name) for name in _TRIAL_FIELDS} | trial.to_json()


def _result(entry: Entry) -> dict[str, Any]:
    verification = entry.verification
    return {
        "winner": None if entry.winner is None else dict(entry.winner),
        "verification": None if verification is None else document.verification_to_json(verification),
        "runs": [
            {"run": number, **document.run_to_json(run)} for number, run in enumerate(entry.runs) if not run.trials
        ],
    }


def imported(source: BinaryIO, on_problem: OnProblem) -> Iterator[Entry]:
    """The entries of the lines in ``source``, which can be read twice: one at a time, however their lines are mixed.

    Several of one fingerprint come where several exports were put into one file. Raises OSError.
    """
    for fingerprint, places in _index(source, on_problem).items():
        yield from _entries(fingerprint, _lines_at(source, places), on_problem)


@dataclass
class _Stretch:
    """Successive lines of one fingerprint: where they begin, the number of the first, and how many they are."""

    offset: int
    number: int
    length: int = 1


def _index(source: BinaryIO, on_problem: OnProblem) -> dict[str, list[_Stretch]]:
    """Where each fingerprint's lines are."""
    found: dict[str, list[_Stretch]] = {}
    last = ""
    for offset, number, line in _lines(source):
        try:
            fingerprint = _fingerprint(line)
        except ValueError as error:
            on_problem(f"line {number}: {error}")
            fingerprint = ""
        if fingerprint and fingerprint == last:
            found[last][-1].length += 1
        elif fingerprint:
            found.setdefault(fingerprint, []).append(_Stretch(offset, number))
        last = fingerprint
    return found


def _lines(source: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Offset, number and content of each line; of a longer one than ``LONGEST_LINE`` only so much and one byte."""
    offset = number = 0
    while line := source.readline(LONGEST_LINE + 1):
        begin, rest = offset, line
        offset, number = offset + len(line), number + 1
        while len(line) > LONGEST_LINE and rest and not rest.endswith(b"\n"):
            rest = source.readline(1 << 20)
            offset += len(rest)
        yield begin, number, line


def _lines_at(source: BinaryIO, places: Sequence[_Stretch]) -> Iterator[tuple[int, bytes]]:
    """Number and content of the lines of one fingerprint."""
    for place in places:
        source.seek(place.offset)
        for number in range(place.number, place.number + place.length):
            yield number, source.readline(LONGEST_LINE + 1)


def _fingerprint(line: bytes) -> str:
    """Whose line it is, "" of an empty one; raises ValueError where it is no trial's."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE >> 20} MiB")
    if head := _HEAD.match(line):
        return head[1].decode()
    return str(_object(line)["fingerprint"]) if line.strip() else ""


def _object(line: bytes) -> dict[str, Any]:
    data = files.parse_json(line)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    if type(data.get("format")) is not int or data["format"] < 1:
        raise ValueError("it has no 'format', so it is no exported trial")
    if data["format"] > FORMAT:
        raise ValueError("it was exported by a newer pytest-kerneltune")
    if not FINGERPRINT.fullmatch(_text(data, "fingerprint")):
        raise ValueError("'fingerprint' is none")
    return data


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r:.80}")
    return value


def _entries(fingerprint: str, lines: Iterator[tuple[int, bytes]], on_problem: OnProblem) -> Iterator[Entry]:
    group = _Group(fingerprint)
    for number, line in lines:
        try:
            data = _object(line)
            if data["fingerprint"] != fingerprint:
                raise ValueError("it names two fingerprints")
            if group.has_result and data.get("result") is not None:  # another export begins
                yield group.entry()
                group = _Group(fingerprint)
            group.add(data)
        except ValueError as error:
            on_problem(f"line {number}: {error}")
    if group.size:
        yield group.entry()


@dataclass
class _Numbered:
    """A run with its number in the export, and its trials by number and content."""

    number: int
    run: Run
    trials: dict[tuple[int, str], Trial] = field(default_factory=dict)

    def complete(self) -> Run:
        return replace(self.run, trials=tuple(self.trials[key] for key in sorted(self.trials, key=lambda key: key[0])))


class _Group:
    """Lines of one entry."""

    def __init__(self, fingerprint: str) -> None:
        self.has_result = False
        self.size = 0
        self._entry = Entry(fingerprint, "", (), None)
        self._runs: dict[str, _Numbered] = {}

    def add(self, data: dict[str, Any]) -> None:
        """Take a line in, whole or not at all; raises ValueError."""
        if self.size >= MOST_TRIALS:
            raise ValueError(f"there are more than {MOST_TRIALS} trials of {self._entry.fingerprint}")
        trial = document.trial_from_json({n: data[n] for n in _TRIAL_FIELDS if data.get(n) is not None})
        content = json.dumps(trial.to_json(), sort_keys=True, allow_nan=False)
        number, run = _run(data)
        place, key = _number(data, "trial"), _identity(number, run)
        entry = _facts(data, self._entry)
        self._entry = self._with_result(entry, data) if data.get("result") is not None else entry
        if not self.has_result and data.get("is_winner") is True and trial.ok:
            self._entry = replace(self._entry, winner=trial.config)
        own = self._runs.setdefault(key, _Numbered(number, run))
        own.trials[place, content] = trial
        self.size += 1

    def _with_result(self, entry: Entry, data: Mapping[str, Any]) -> Entry:
        winner, verification, idle = _read_result(data["result"])
        for number, run in idle:
            self._runs.setdefault(_identity(number, run), _Numbered(number, run))
        self.has_result = True
        return replace(entry, winner=winner, verification=verification)

    def entry(self) -> Entry:
        """The entry of all lines."""
        runs = list(self._runs.values())
        is_one_export = len({each.number for each in runs}) == len(runs)
        runs.sort(key=lambda each: each.number if is_one_export else each.run.created)
        return replace(self._entry, runs=tuple(each.complete() for each in runs))


def _facts(data: Mapping[str, Any], entry: Entry) -> Entry:
    """``entry`` with what the line says of the kernel; raises ValueError."""
    family, inputs = _text(data, "family"), data.get("inputs")
    if family and not FINGERPRINT.fullmatch(family):
        raise ValueError("'family' is none")
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ValueError(f"'inputs' is {inputs!r:.80}")
    return replace(entry, kernel=_text(data, "kernel"), family=family, inputs=tuple(inputs))


def _run(data: Mapping[str, Any]) -> tuple[int, Run]:
    """The run that a line tells of, without trials, and its number; raises ValueError."""
    run = document.run_from_json({name: value for name, value in data.items() if name != "trials"})
    if not _TOKEN.fullmatch(run.token):
        raise ValueError(f"'token' is {run.token!r:.80}")
    return _number(data, "run"), run


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name!r} is {value!r:.80}")
    return value


def _identity(number: int, run: Run) -> str:
    return run.token or json.dumps([number, document.run_to_json(run)], sort_keys=True)


def _read_result(data: Any) -> tuple[Config | None, Verification | None, list[tuple[int, Run]]]:
    """Winner, verification and runs without trials; raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("'result' is not a JSON object")
    json.dumps(data, allow_nan=False)  # raises ValueError: an infinite number can be read, but not written
    winner, verification, runs = data.get("winner"), data.get("verification"), data.get("runs", [])
    if not isinstance(winner, dict | None) or not isinstance(verification, dict | None) or not isinstance(runs, list):
        raise ValueError("'result' is not as it is written")
    return (
        None if winner is None else document.as_config(winner),
        None if verification is None else document.verification_from_json(verification),
        [_run(run if isinstance(run, dict) else {}) for run in runs],
    )
