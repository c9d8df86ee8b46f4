"""Latencies, configs and verdicts in words."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pytest_kerneltune.gate.decision import Verdict
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.trial import Config


def format_ms(latency_ms: float) -> str:
    """A latency for people: "6.104 us", "1.2 ms"."""
    for limit, factor, unit in ((1e-3, 1e6, "ns"), (1.0, 1e3, "us"), (1e3, 1.0, "ms")):
        if latency_ms < limit:
            return f"{latency_ms * factor:.4g} {unit}"
    return f"{latency_ms / 1e3:.4g} s"


def percent(fraction: float) -> str:
    """A fraction for people: "3%", "1.25%"."""
    return f"{100 * fraction:.3g}%"


def too_small(least_ms: float, latency_ms: float) -> str:
    """Why a threshold is not finer than ``least_ms`` at this latency."""
    return f", since at {format_ms(latency_ms)} a change below {format_ms(least_ms)} does not count"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """The facts in which ``old`` and ``new`` differ."""
    keys = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
    return "; ".join(f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in keys)


def token(config: Config) -> str:
    """Equality as JSON sees it, so that a stored list equals the tuple it was."""
    return json.dumps(config, sort_keys=True)


def config_text(old: Config, new: Config) -> str:
    """Both configs in one line, what changed as ``name=before -> after``."""
    before = {key: json.dumps(value) for key, value in old.items()}
    after = {key: json.dumps(value) for key, value in new.items()}
    pairs = {key: (before.get(key, "absent"), after.get(key, "absent")) for key in {**after, **before}}
    text = ", ".join(f"{key}={a}" if a == b else f"{key}={a} -> {b}" for key, (a, b) in pairs.items())
    return text if before != after else f"unchanged: {text}"


def config_words(config: Config) -> str:
    """A config for people: "BLOCK=64, STAGES=2"."""
    return ", ".join(f"{name}={value}" for name, value in config.items()) or "(no parameters)"


def sessions_text(baseline: Baseline) -> str:
    """The sessions of ``baseline`` with their dates: "3 sessions from 2026-11-02 to 2026-11-20"."""
    count = len(baseline.sessions)
    text = f"{count} session{'s' if count > 1 else ''}"
    dates = [session.recorded["date"] for session in baseline.sessions if "date" in session.recorded]
    if not dates:
        return text
    first, last = min(dates), max(dates)
    return f"{text} of {first}" if first == last else f"{text} from {first} to {last}"


def regression_message(
    verdict: Verdict, baseline: Baseline | None, latency_ms: float, config: Config, name: str, accept_command: str
) -> str:
    """The text of a test that failed because ``name`` regressed to ``latency_ms`` with ``config``.

    What it was is the verdict's, or else ``baseline``'s; raises ValueError where there is neither.
    """
    then_ms, then_config = _then(verdict, baseline)
    blame = _CODE_BESIDE if (verdict.basis, verdict.blame) == ("base", "code") else BLAMES[verdict.blame]
    rows = [("why", verdict.reason), ("blame", blame), *_parts(verdict, then_config, config)]
    rows.append(("config", config_text(then_config, config)))
    against = verdict.against or (sessions_text(baseline) if baseline else "")
    rows.append(("against", f"{against}{_recorded(verdict, baseline)}"))
    rows += [("note", remark) for remark in verdict.remarks]
    rows.append(("accept", accept_command))
    head = f"{name} REGRESSED {verdict.change}: {format_ms(then_ms)} -> {format_ms(latency_ms)}"
    return "\n".join([head, *(f"  {label:<7}  {text}" for label, text in rows if text)])


BLAMES: Mapping[str, str] = {
    "code": "code: the old config itself is slower than it was (kernel, compiler or driver)",
    "search": "search: it chose a config that is slower than the old one",
    "config gone": "config gone: the old config no longer runs, and the best one found is slower",
    "environment": "environment: the compiled code is the same, so what surrounds it differs",
    "": "",
}
"""What a verdict's blame means."""

_CODE_BESIDE = "code: with the same config it is slower than the base is today (kernel, or what it calls)"


def _then(verdict: Verdict, baseline: Baseline | None) -> tuple[float, Config]:
    if verdict.then_ms is not None and verdict.then_config is not None:
        return verdict.then_ms, verdict.then_config
    if baseline is None:
        raise ValueError("a verdict that does not say what it compared with needs its baseline")
    return baseline.latency_ms, baseline.config


def _parts(verdict: Verdict, old: Config, new: Config) -> list[tuple[str, str]]:
    if token(old) == token(new):
        return []
    then = "its base" if verdict.basis == "base" else "then"
    rows = []
    if verdict.code_change:
        rows.append(("code", f"{verdict.code_change}  today's code against {then}, with the same config"))
    if verdict.search_change:
        rows.append(("search", f"{verdict.search_change}  today's config against the old one, both now"))
    return rows


def _recorded(verdict: Verdict, baseline: Baseline | None) -> str:
    if verdict.basis == "base" or baseline is None:
        return ""
    facts = [f"{key} {value}" for key, value in baseline.recorded.items() if key != "date"]
    return f"; the last: {', '.join(facts)}" if facts else ""
