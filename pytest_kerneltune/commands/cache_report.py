"""What the ``cache`` command prints of entries (pure)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pytest_kerneltune.cache import Entry, Run
from pytest_kerneltune.cache.document import verification_to_json
from pytest_kerneltune.cache.upkeep import Item
from pytest_kerneltune.report.format import count, latency
from pytest_kerneltune.texts import printable
from pytest_kerneltune.trial import Config, Trial

SHORT = 12
"""Digits of a fingerprint that name it to people."""

_BEST = 10
_ROW = ("kernel", "device", "latency", "trials", "search", "ended", "size", "used", "fingerprint")
_RUN = ("search", "effort", "seed", "date", "end", "trials", "host", "journal")
_TRIAL = ("latency", "config", "stage", "compiled in", "at")


@dataclass(frozen=True)
class Leftover:
    """A journal beside an entry: its file's name, its trials, and how many of these no entry has."""

    name: str
    trials: int
    fresh: int


def entries_text(number: int) -> str:
    """ "1 entry", "2 entries"."""
    return "1 entry" if number == 1 else f"{number} entries"


def totals(counts: Mapping[str, int]) -> dict[str, int]:
    """What a listing comes to: sizes in bytes, ``interrupted`` fingerprints have journals only."""
    return {
        name: counts.get(name, 0) for name in ("entries", "trials", "size", "interrupted", "set_aside", "size_aside")
    }


def total_line(counts: Mapping[str, int]) -> str:
    """The same for a reader."""
    known = totals(counts)
    parts = [entries_text(known["entries"]), count(known["trials"], "trial"), size_text(known["size"])]
    if known["interrupted"]:
        parts.append(f"{count(known['interrupted'], 'kernel')} with trials of interrupted searches only")
    if known["set_aside"]:
        parts.append(f"{count(known['set_aside'], 'file')} set aside ({size_text(known['size_aside'])})")
    return ", ".join(parts)


def row(item: Item, entry: Entry, now: float) -> tuple[str, ...]:
    """An entry's line in the list; ``now`` in seconds since 1970."""
    last = entry.last
    return (
        entry.kernel,
        entry.device,
        latency(entry.latency_ms),
        _trials(entry.trials),
        f"{last.algorithm} {last.effort}",
        _end(last),
        size_text(item.size),
        age_text(now - item.used),
        entry.fingerprint[:SHORT],
    )


def listing(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of :func:`row` under a heading, by kernel and device."""
    return table([_ROW, *sorted(rows)])


def summary(item: Item, entry: Entry) -> dict[str, Any]:
    """An entry's facts for ``list --json``."""
    last = entry.last
    return {
        "fingerprint": entry.fingerprint,
        "kernel": entry.kernel,
        "device": entry.device,
        "winner": None if entry.winner is None else dict(entry.winner),
        "latency_ms": _finite(entry.latency_ms),
        "trials": len(entry.trials),
        "failed": sum(not trial.ok for trial in entry.trials),
        "algorithm": last.algorithm,
        "effort": str(last.effort),
        "finished": last.finished,
        "created": last.created,
        "runs": len(entry.runs),
        "journals": len(item.journals),
        "size": item.size,
        "used": item.used,
        "path": str(item.path),
    }


def details(item: Item, entry: Entry, journals: Sequence[Leftover], tuner: str, now: float) -> list[str]:
    """All about one entry, for a reader; ``tuner`` says who tunes it, "" for nobody."""
    facts = {
        "fingerprint": entry.fingerprint,
        "device": entry.device or "unknown",
        "inputs": "; ".join(entry.inputs),
        "winner": _winner(entry),
        "verified": _verified(entry),
        "file": f"{item.path}, {size_text(item.size)}, last used {age_text(now - item.used)} ago",
        "tuned now by": tuner,
    }
    best = sorted((t for t in entry.trials if t.ok), key=lambda t: t.latency_ms)[:_BEST]
    failures = Counter(str(t.status) for t in entry.trials if not t.ok)
    return [
        printable(entry.kernel),
        *(f"  {label:<12}  {printable(text)}" for label, text in facts.items() if text),
        *_section(_runs_title(entry), table([_RUN, *map(_run, entry.runs)])),
        *(_section("best trials:", table([_TRIAL, *map(_trial, best)])) if best else []),
        *(_section("failures:", _failures(failures)) if failures else []),
        *(_section("journals of searches that did not come to their end:", _journals(journals)) if journals else []),
    ]


def details_json(item: Item, entry: Entry, journals: Sequence[Leftover], tuner: str) -> dict[str, Any]:
    """The same as JSON."""
    verification = entry.verification
    best = sorted((t for t in entry.trials if t.ok), key=lambda t: t.latency_ms)[:_BEST]
    return {
        **summary(item, entry),
        "inputs": list(entry.inputs),
        "family": entry.family,
        "verification": None if verification is None else verification_to_json(verification),
        "runs": [_run_json(run) for run in entry.runs],
        "best": [trial.to_json() for trial in best],
        "failures": Counter(str(t.status) for t in entry.trials if not t.ok),
        "tuned_by": tuner or None,
        "journals": [vars(each) for each in journals],
    }


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; foreign text is escaped."""
    plain = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in plain)
    return [f"  {line}".rstrip() for line in lines]


def size_text(size: int) -> str:
    """Bytes for a reader: "812 bytes", "1.4 KiB", "25 MiB"."""
    if size < 1024:
        return count(size, "byte")
    power = min(3, int(math.log2(size)) // 10)
    value = size / 1024**power
    return f"{value:.1f} {'KMG'[power - 1]}iB" if value < 9.95 else f"{value:.0f} {'KMG'[power - 1]}iB"


def age_text(seconds: float) -> str:
    """Seconds as whole minutes, hours or days: "3 min", "5 h", "41 d"."""
    if seconds < 3600:
        return f"{max(0, int(seconds // 60))} min"
    return f"{int(seconds // 3600)} h" if seconds < 2 * 86400 else f"{int(seconds // 86400)} d"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines]


def _runs_title(entry: Entry) -> str:
    return "1 run:" if len(entry.runs) == 1 else f"{len(entry.runs)} runs, oldest first:"


def _trials(trials: Sequence[Trial]) -> str:
    failed = sum(not trial.ok for trial in trials)
    return f"{len(trials)} ({failed} failed)" if failed else str(len(trials))


def _end(run: Run) -> str:
    return "finished" if run.finished else "cut short"


def _winner(entry: Entry) -> str:
    if entry.winner is None:
        return "none: all configs failed"
    time = latency(entry.latency_ms)
    return f"{_config(entry.winner)}{f', {time}' if time else ''}"


def _verified(entry: Entry) -> str:
    verification = entry.verification
    if verification is None:
        return ""
    output = "its output checked" if verification.checked else "its output not checked"
    medians = [latency(median(each.readings_ms)) for each in verification.finalists if each.readings_ms]
    beside = f"; side by side: {' against '.join(medians)}" if medians else ""
    return f"{verification.created or 'at an unknown date'}, {output}{beside}"


def _config(config: Config) -> str:
    return json.dumps(dict(config))


def _run(run: Run) -> tuple[str, ...]:
    return (
        run.algorithm or "unknown",
        str(run.effort),
        str(run.seed),
        run.created,
        ", ".join(filter(None, (_end(run), _budget(run)))),
        _trials(run.trials),
        run.origin.get("host", ""),
        run.token,
    )


def _budget(run: Run) -> str:
    seconds = "" if run.budget_seconds is None else f"{run.budget_seconds:g} s"
    configs = "" if run.budget_configs is None else count(run.budget_configs, "config")
    limits = " and ".join(filter(None, (seconds, configs)))
    return f"limited to {limits}" if limits else ""


def _run_json(run: Run) -> dict[str, Any]:
    known = {name: value for name, value in vars(run).items() if name != "trials"}
    failed = sum(not trial.ok for trial in run.trials)
    return {**known, "effort": str(run.effort), "origin": dict(run.origin), "trials": len(run.trials), "failed": failed}


def _trial(trial: Trial) -> tuple[str, ...]:
    return (
        latency(trial.latency_ms),
        _config(trial.config),
        trial.stage,
        f"{trial.compile_s:.2f} s" if trial.compile_s else "",
        f"{trial.at_s:.1f} s" if trial.at_s else "",
    )


def _failures(failures: Mapping[str, int]) -> list[str]:
    return [f"  {number} {printable(status)}" for status, number in sorted(failures.items(), key=lambda f: -f[1])]


def _journals(journals: Sequence[Leftover]) -> list[str]:
    return [f"  {printable(j.name)}: {count(j.trials, 'trial')}, {j.fresh} of them in no entry" for j in journals]


def _finite(ms: float) -> float | None:
    return ms if math.isfinite(ms) else None
