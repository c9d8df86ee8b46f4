"""What JUnit files say about a kernel: flat properties of its test case."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kerneltune.outcome import Outcome

_CHANGE = ("change_pct", "change_low_pct", "change_high_pct")


def properties(outcome: Outcome) -> dict[str, str | float]:
    """Numbers and strings by name; changes and thresholds in percent, positive where slower. What is unknown is left
    out."""
    verdict = outcome.verdict
    values: dict[str, str | float | None] = {
        "verdict": verdict.kind,
        "latency_ms": outcome.latency_ms,
        "reference_ms": outcome.reference_ms,
        **dict(zip(_CHANGE, _percent(verdict.change or ()), strict=False)),
        "threshold_pct": None if verdict.threshold is None else _percent([verdict.threshold])[0],
        "blame": verdict.blame or None,
        "basis": verdict.basis or None,
        "against": verdict.against or None,
    }
    return {f"kerneltune.{outcome.name}.{key}": value for key, value in values.items() if value is not None}


def _percent(fractions: Sequence[float]) -> list[float]:
    return [round(100 * fraction, 3) for fraction in fractions]
