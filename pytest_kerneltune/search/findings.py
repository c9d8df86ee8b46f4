"""What a search has found so far, in words: the sections of a prompt that are made from trials.

Configs are shown by what differs from the space's default; {} is the default.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pytest_kerneltune.search import Related
from pytest_kerneltune.search.roofline import Roof, distance
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial, best_trial

SHOWN_VALUES = 40
"""A parameter of more values than this is described, not listed."""

_SHOWN_RESULTS = 12
_COMPARED = 5
_SHOWN_FAILURES = 4
_SHOWN_RIVALS = 6
_SHOWN_KERNELS = 3
_SHOWN_RELATED = 5
_OF_RELATED = (
    "What wins there is strong evidence: take the best over as they are where the sizes are alike, and adapt tiles and "
    "grid where they differ. Latencies are relative to the best of that kernel."
)


def state(space: ConfigSpace, trials: Sequence[Trial], before_ms: float = math.inf, bounds: Roof | None = None) -> str:
    """How many configs were measured, the best latency and the default's, the last round's gain, what is left to gain.

    ``before_ms`` is the best latency before the last round (inf: there was none), ``bounds`` the roofs of the kernel.
    """
    failed = sum(not t.ok for t in trials)
    best, default = best_trial(trials), _trial_of(space, trials, space.default)
    lines = [f"{len(trials)} configs measured, {failed} of them failed."]
    if best is not None:
        far = distance(bounds, best.latency_ms) if bounds else ""
        lines.append(f"Best latency {best.latency_ms:.4g} ms{', ' if far else ''}{far}.")
        if math.isfinite(before_ms):
            lines.append(_gain(best.latency_ms / before_ms))
    if best is not None and default is not None and default.ok:
        lines.append(f"Default config {default.latency_ms:.4g} ms, {_ratio(default, best):.3g} x the best.")
    return "\n".join(lines)


def _gain(ratio: float) -> str:
    gained = 1 - ratio
    return f"The last round gained {gained:.1%}." if gained > 0 else "The last round found nothing better."


def default_result(space: ConfigSpace, trials: Sequence[Trial], bounds: Roof) -> list[str]:
    """What the default config took, and how far that is from the roof; empty where it was not measured."""
    default = _trial_of(space, trials, space.default)
    if default is None or not default.ok:
        return []
    far = distance(bounds, default.latency_ms)
    return [f"the default config takes {default.latency_ms:.4g} ms{', ' if far else ''}{far}"]


def related(space: ConfigSpace, kernels: Related) -> str:
    """The best configs of related kernels, each with its latency relative to that kernel's best."""
    blocks = [block for trials in kernels[:_SHOWN_KERNELS] if (block := _of_kernel(space, trials))]
    return "\n".join([_OF_RELATED, *blocks]) if blocks else ""


def _of_kernel(space: ConfigSpace, trials: Sequence[Trial]) -> str:
    ranked = _ranked(space, trials)
    failed = sum(not t.ok for t in trials)
    label = one_line(getattr(trials, "label", "")) or "the same kernel at other shapes or before an edit"
    if not trials:
        return ""
    lines = [f"- {label}: {len(trials)} configs measured, {failed} of them failed; best first:"]
    lines += [f"  x{_ratio(t, ranked[0]):.3f} {sparse(space, t.config)}" for t in ranked[:_SHOWN_RELATED]]
    return "\n".join(lines if ranked else [lines[0].replace("; best first:", "")])


def anchors(space: ConfigSpace, trials: Sequence[Trial]) -> str:
    """The best config, and the best among those that differ from it in at least two and a third of the parameters."""
    ranked = _ranked(space, trials)
    if not ranked:
        return ""
    far = max(2, len(space.names) // 3)
    other = next((t for t in ranked if len(_difference(space, t.config, ranked[0].config)) >= far), None)
    lines = [f"- best: {_line(space, ranked[0], ranked[0])}"]
    return "\n".join(lines + ([f"- best of another family: {_line(space, other, ranked[0])}"] if other else []))


def results(space: ConfigSpace, trials: Sequence[Trial]) -> str:
    """The best few results, fastest first, with their latency relative to the best."""
    ranked = _ranked(space, trials)[:_SHOWN_RESULTS]
    return bullets(_line(space, t, ranked[0]) for t in ranked)


def patterns(space: ConfigSpace, trials: Sequence[Trial]) -> str:
    """What the best configs differ in from the default, value by value, and which values were never tried."""
    ranked = _ranked(space, trials)
    if len(ranked) < _COMPARED:
        return ""
    return bullets(_pattern(space, name, ranked, trials) for name in space.names)


def _pattern(space: ConfigSpace, name: str, ranked: Sequence[Trial], trials: Sequence[Trial]) -> str:
    parameter = space.parameters[name]
    tried = Counter(json.dumps(t.config[name]) for t in trials)
    among = Counter(json.dumps(t.config[name]) for t in ranked[:_COMPARED])
    fastest: dict[str, Trial] = {}
    for trial in ranked:
        fastest.setdefault(json.dumps(trial.config[name]), trial)
    text = f"{one_line(name)} (default {json.dumps(space.default[name])}): best {_COMPARED} have " + ", ".join(
        f"{value} ({n} of {_COMPARED}; {tried[value]} of all {len(trials)})" for value, n in among.most_common()
    )
    rivals = [f"{value} x{_ratio(t, ranked[0]):.3f}" for value, t in fastest.items() if value not in among]
    values = parameter.values() if parameter.size <= SHOWN_VALUES else None
    never = [token for v in values or () if (token := json.dumps(v)) not in tried]
    text += f"; best with others: {', '.join(rivals[:_SHOWN_RIVALS])}" if rivals else ""
    return text + (f"; never tried: {', '.join(never)}" if never else "")


def failures(space: ConfigSpace, trials: Sequence[Trial]) -> str:
    """How many configs failed in which way, with examples, and the values that failed nearly always."""
    by_status: dict[Status, list[Trial]] = {}
    for trial in trials:
        if not trial.ok:
            by_status.setdefault(trial.status, []).append(trial)
    lines = []
    for status, failed in sorted(by_status.items(), key=lambda item: -len(item[1])):
        lines.append(f"- {status.value}: {len(failed)}")
        for trial in failed[-_SHOWN_FAILURES:]:
            reason = f" ({one_line(trial.reason)[:160]})" if trial.reason else ""
            lines.append(f"  {sparse(space, trial.config)}{reason}")
    return "\n".join(lines + _risky_values(space, trials))


def _risky_values(space: ConfigSpace, trials: Sequence[Trial]) -> list[str]:
    """Values that failed nearly always, and more often than configs did on the whole."""
    overall = sum(not t.ok for t in trials) / max(1, len(trials))
    lines = []
    for name in space.names:
        tried = Counter(json.dumps(t.config[name]) for t in trials)
        failed = Counter(json.dumps(t.config[name]) for t in trials if not t.ok)
        lines += [
            f"- {one_line(name)} = {value} failed {n} of {tried[value]} times"
            for value, n in failed.items()
            if n >= 3 and n / tried[value] >= max(0.75, 1.25 * overall)
        ]
    return lines


def _ranked(space: ConfigSpace, trials: Sequence[Trial]) -> list[Trial]:
    """Successful trials, fastest first, one per config."""
    best: dict[str, Trial] = {}
    for trial in sorted((t for t in trials if t.ok), key=lambda t: t.latency_ms):
        best.setdefault(space.key(trial.config), trial)
    return list(best.values())


def _trial_of(space: ConfigSpace, trials: Sequence[Trial], config: Config) -> Trial | None:
    key = space.key(config)
    return next((t for t in trials if space.key(t.config) == key), None)


def _difference(space: ConfigSpace, config: Config, other: Config) -> list[str]:
    return [name for name in space.names if json.dumps(config[name]) != json.dumps(other[name])]


def _line(space: ConfigSpace, trial: Trial, best: Trial) -> str:
    return f"{trial.latency_ms:.4g} ms (x{_ratio(trial, best):.3f}) {sparse(space, trial.config)}"


def _ratio(trial: Trial, best: Trial) -> float:
    return trial.latency_ms / best.latency_ms if best.latency_ms else 1.0


def sparse(space: ConfigSpace, config: Config) -> str:
    """What differs from the default, as JSON."""
    return as_json(differing(config, space.default))


def differing(config: Config, default: Config) -> Config:
    """The values of ``config`` that are not those of ``default``, as JSON compares."""
    return {n: v for n, v in config.items() if n not in default or json.dumps(v) != json.dumps(default[n])}


def as_json(config: Config) -> str:
    return json.dumps(dict(config))


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)


def one_line(text: str) -> str:
    return " ".join(text.split())
