"""The report of ``--autotune-json``: everything a run found out, for programs.

::

    {"schema": 1,
     "run": {"command": [...], "seconds": ..., "started": "...", "settings": {...}, "versions": {...}},
     "counts": {"ok": 3, "regressed": 1},
     "kernels": [{"id": ..., "verdict": {...}, "config": {...}, "latency_ms": ..., "search": {...}, "trials": [...]}]}

A kernel is an ``outcome.Outcome`` with all its fields; its trials are ``trial.Trial.to_json``, failures with reason
and log included. Times are ms where a name ends in ``_ms`` and seconds where it ends in ``_s`` or is ``seconds``. The
number ``schema`` rises when a field is renamed, removed or changes its meaning, not when one is added. Numbers that
JSON does not have (inf, nan) are null.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report.format import worst_first
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.versions import versions

SCHEMA = 1


def document(outcomes: Sequence[Outcome], run: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON values, the worst verdict first; ``run`` says what the run was (see ``run_facts``)."""
    ordered = worst_first(outcomes)
    return {
        "schema": SCHEMA,
        "run": _plain(run),
        "counts": dict(sorted(Counter(o.verdict.kind for o in ordered).items())),
        "kernels": [_plain({"id": o.id, "speedup": o.speedup, **o.to_json()}) for o in ordered],
    }


def run_facts(settings: Settings, command: Sequence[str], started: datetime, seconds: float) -> dict[str, Any]:
    """What a run was: its command line, when it began, how many wall seconds it took, its settings and versions.

    Of the language model's settings only provider and model are named.
    """
    shown = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "llm"}
    return {
        "command": list(command),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "settings": {**shown, "llm_provider": settings.llm.provider, "llm_model": settings.llm.model},
        "versions": versions(),
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``report``, making its directory; raises StoreError naming the path."""
    files.write_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: sets sorted, numbers finite, anything unknown as its text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
