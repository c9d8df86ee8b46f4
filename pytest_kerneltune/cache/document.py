"""An entry as a JSON document, and trials as lines of a journal: written, and read with every field checked.

A document begins with a digest of the bytes behind it, so that one that was garbled and still is JSON is told from a
whole one. Schema 1 had one run, its fields among the entry's, and no digest; it is read, and never written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.cache.entry import Entry, Finalist, Run, Verification
from pytest_kerneltune.cache.family import FINGERPRINT
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Config, Status, Trial

SCHEMA = 2
"""A version that writes what this one would take for malformed, such as another status of a trial, has to raise it."""

_FIRST_SCHEMA = 1
_HEAD, _TAIL = b'{"check": "', b'", '
_DIGEST = 64  # hex digits
_PLAIN = {int, str, bool, NoneType}
_NUMERIC = {int, float}


class NewerSchema(StoreError):
    """The entry was written by a newer version of this package."""


def rendered(entry: Entry) -> bytes:
    """The document of ``entry``; raises ValueError that says why it has none."""
    try:
        body = json.dumps(to_json(entry), allow_nan=False).encode()[1:] + b"\n"
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    content = _HEAD + hashlib.sha256(body).hexdigest().encode() + _TAIL + body
    if len(content) > files.MAX_BYTES:
        raise ValueError(f"it would be larger than {files.MAX_BYTES >> 20} MiB")
    return content


def content_of(path: Path, entry: Entry) -> bytes:
    """What is to be in the file ``path`` for ``entry``; raises StoreError where that cannot be written."""
    try:
        return rendered(entry)
    except ValueError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def parsed(content: bytes) -> Entry:
    """The entry of a document; raises ValueError that says what is wrong with it, or NewerSchema."""
    data = files.parse_json(content)
    entry = from_json(data)
    if data["schema"] != _FIRST_SCHEMA and not _is_whole(content):
        raise ValueError("its content is not what was written (the digest differs)")
    return entry


def _is_whole(content: bytes) -> bool:
    digest, body = content[len(_HEAD) : len(_HEAD) + _DIGEST], content[len(_HEAD) + _DIGEST + len(_TAIL) :]
    return hashlib.sha256(body).hexdigest().encode() == digest


def to_json(entry: Entry) -> dict[str, Any]:
    """A JSON object; :func:`from_json` is the inverse."""
    verification = entry.verification
    return {
        "schema": SCHEMA,
        "fingerprint": entry.fingerprint,
        "kernel": entry.kernel,
        "winner": None if entry.winner is None else dict(entry.winner),
        "family": entry.family,
        "inputs": list(entry.inputs),
        "verification": None if verification is None else verification_to_json(verification),
        "runs": [{**run_to_json(run), "trials": [trial.to_json() for trial in run.trials]} for run in entry.runs],
    }


def run_to_json(run: Run) -> dict[str, Any]:
    """A JSON object of all but the trials."""
    known = {name: value for name, value in vars(run).items() if name != "trials"}
    return {**known, "effort": str(run.effort), "origin": dict(run.origin)}


def verification_to_json(verification: Verification) -> dict[str, Any]:
    """A JSON object."""
    finalists = [{"config": dict(f.config), "readings_ms": list(f.readings_ms)} for f in verification.finalists]
    return {"created": verification.created, "checked": verification.checked, "finalists": finalists}


def from_json(data: Any) -> Entry:
    """The entry that ``data`` describes; raises ValueError that names what is malformed, or NewerSchema."""
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    schema = _typed(data, "schema", int)
    if schema < _FIRST_SCHEMA:
        raise ValueError(f"'schema' is {schema!r:.80}")
    if schema > SCHEMA:
        raise NewerSchema(f"the entry of {data.get('fingerprint')!r:.80} is of a newer pytest-kerneltune")
    winner = _typed(data, "winner", dict, NoneType)
    verification = _typed({"verification": None, **data}, "verification", dict, NoneType)
    runs = [data] if schema == _FIRST_SCHEMA else _typed(data, "runs", list)
    return Entry(
        fingerprint=_typed(data, "fingerprint", str),
        kernel=_typed(data, "kernel", str),
        runs=tuple(run_from_json(run) for run in runs),
        winner=None if winner is None else as_config(winner),
        family=_family(_typed({"family": "", **data}, "family", str)),
        inputs=_lines(_typed({"inputs": [], **data}, "inputs", list)),
        verification=None if verification is None else verification_from_json(verification),
    )


def run_from_json(data: Any) -> Run:
    """The run that ``data`` describes, with the trials that it holds; raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("a run is not a JSON object")
    return Run(
        algorithm=_typed(data, "algorithm", str),
        effort=Effort(_typed(data, "effort", str)),
        seed=_typed(data, "seed", int),
        finished=_typed(data, "finished", bool),
        created=_date(_typed(data, "created", str)),
        trials=tuple(trial_from_json(each) for each in _typed({"trials": [], **data}, "trials", list)),
        budget_seconds=_limit(data, "budget_seconds", int, float),
        budget_configs=_limit(data, "budget_configs", int),
        origin=_strings(_typed(data, "origin", dict)),
        token=_typed({"token": "", **data}, "token", str),
    )


def verification_from_json(data: Mapping[str, Any]) -> Verification:
    """The verification that ``data`` describes; raises ValueError."""
    finalists = []
    for finalist in _typed(data, "finalists", list):
        if not isinstance(finalist, dict):
            raise ValueError("a finalist is not a JSON object")
        config = as_config(_typed(finalist, "config", dict))
        finalists.append(Finalist(config, _numbers(_typed(finalist, "readings_ms", list))))
    return Verification(_date(_typed(data, "created", str)), _typed(data, "checked", bool), tuple(finalists))


def trial_from_json(data: Any) -> Trial:
    """The trial that ``data`` describes; raises ValueError. No number in it is infinite, so that it can be written."""
    try:
        trial = Trial(**{name: _TRIAL[name](value) for name, value in data.items() if name in _TRIAL})
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a trial is malformed: {error!r:.80}") from error
    if "status" not in data:
        raise ValueError("a trial has no status")
    if trial.latency_ms < 0:
        raise ValueError(f"a trial's latency is {trial.latency_ms}")
    return trial


def journal_trials(lines: list[bytes]) -> Iterator[Trial]:
    """The trials of a journal's lines; what is none, such as what a dying writer left unfinished, is skipped."""
    for line in lines:
        with suppress(ValueError):
            yield trial_from_json(files.parse_json(line))


def as_config(data: Mapping[str, Any]) -> Config:
    """A config as searches have it: JSON turned its tuples into lists. Raises ValueError."""
    if _PLAIN.issuperset(map(type, data.values())):
        return dict(data)
    try:
        return {name: _as_value(value) for name, value in data.items()}
    except RecursionError:
        raise ValueError("a config is nested too deeply") from None


def _as_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a config holds an infinite number")
    if isinstance(value, dict):
        return {name: _as_value(inner) for name, inner in value.items()}
    return tuple(map(_as_value, value)) if isinstance(value, list) else value


def _trial_text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a trial has {value!r:.80} for a text")
    return value


def _trial_number(value: Any) -> float:
    if type(value) not in _NUMERIC or not math.isfinite(value):
        raise ValueError(f"a trial has {value!r:.80} for a number")
    return float(value)


def _trial_samples(value: Any) -> tuple[float, ...]:
    if type(value) is not list or not (_NUMERIC.issuperset(map(type, value)) and all(map(math.isfinite, value))):
        raise ValueError("'samples_ms' of a trial holds something other than numbers")
    return tuple(map(float, value))


def _trial_usage(value: Any) -> dict[str, int]:
    if not {int}.issuperset(map(type, value.values())):
        raise ValueError("'usage' of a trial holds something other than whole numbers")
    return dict(value)


_STATUSES = {status.value: status for status in Status}
_TRIAL: Mapping[str, Callable[[Any], Any]] = {
    "config": as_config,
    "status": _STATUSES.__getitem__,
    "samples_ms": _trial_samples,
    "usage": _trial_usage,
    **dict.fromkeys(("reason", "log", "stage"), _trial_text),
    **dict.fromkeys(("latency_ms", "compile_s", "measure_s", "at_s", "demand"), _trial_number),
}


def _typed(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """``data[name]``, which must be of exactly one of ``kinds`` (True is no int)."""
    value = data.get(name)
    if type(value) not in kinds or (value is None and name not in data):
        raise ValueError(f"{name!r} is {value!r:.80}" if name in data else f"{name!r} is missing")
    return value


def _limit(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = _typed(data, name, *kinds, NoneType)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name!r} is {value!r}")
    return value


def _date(text: str) -> str:
    if text:
        datetime.fromisoformat(text)
    return text


def _family(name: str) -> str:
    if name and not FINGERPRINT.fullmatch(name):
        raise ValueError(f"'family' is {name!r:.80}")
    return name


def _strings(data: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in data.values()):
        raise ValueError("'origin' holds something other than strings")
    return data


def _lines(data: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(line, str) for line in data):
        raise ValueError("'inputs' holds something other than strings")
    return tuple(data)


def _numbers(data: list[Any]) -> tuple[float, ...]:
    if not all(type(value) in (int, float) and 0 <= value < math.inf for value in data):
        raise ValueError("'readings_ms' holds something other than times")
    return tuple(data)
