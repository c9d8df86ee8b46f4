"""The summary of a GitHub Actions step: a table in Markdown, the worst first, and the failures in full."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form

LIMIT = 900_000
"""Most bytes of a summary; GitHub drops that of a step when it exceeds 1 MiB, other tools' part included."""

_MOST_DETAIL = 20_000  # characters of a verdict's details, so that one kernel's log does not displace the others

_SYMBOLS = {
    "regressed": ":red_circle:",
    "wrong": ":red_circle:",
    "failed": ":red_circle:",
    "improved": ":green_circle:",
}
_SYMBOLS |= dict.fromkeys(("invalid", "noisy", "incomparable", "new"), ":yellow_circle:")

_HEAD = (
    "| | kernel | latency | baseline | change | blame | compared | vs reference | config from |",
    "|---|---|--:|--:|:--|---|---|--:|---|",
)


def step_summary(outcomes: Sequence[Outcome]) -> str:
    """Markdown of at most LIMIT bytes; empty for no outcomes. What does not fit is counted in the last line."""
    if not outcomes:
        return ""
    ordered = form.worst_first(outcomes)
    names = form.labels(ordered)
    blocks = [f"### Kernels: {form.tally(ordered)}\n", *_HEAD]
    blocks += [_row(outcome, names[outcome.id]) for outcome in ordered]
    blocks += _details(ordered, names)
    return _cut(blocks, LIMIT)


def _row(outcome: Outcome, name: str) -> str:
    cells = (
        f"{_SYMBOLS.get(outcome.verdict.kind, ':white_circle:')} {outcome.verdict.kind}",
        _code(name),
        form.latency(outcome.latency_ms),
        form.latency(outcome.previous_ms),
        form.change(outcome.verdict),
        outcome.verdict.blame,
        form.compared_with(outcome),
        form.ratio(outcome.speedup),
        form.found_by(outcome.search),
    )
    return f"| {' | '.join(cells)} |"


def _details(ordered: Sequence[Outcome], names: dict[str, str]) -> Iterator[str]:
    for outcome in ordered:
        verdict = outcome.verdict
        if verdict.fails or verdict.kind not in ("ok", "improved", "checked"):
            said = html.escape((verdict.details or verdict.summary)[:_MOST_DETAIL], quote=False)
            title = f"{verdict.kind}: {_code(names[outcome.id])}"
            yield f"\n<details><summary>{title}</summary>\n<pre>{_unbroken(said)}</pre>\n</details>"
    for remark in (*form.verdict_remarks(ordered), *form.remarks(ordered)):
        yield f"\n- {_code(remark)}"


def _code(name: str) -> str:
    """Text in a cell: no Markdown in it is read as such."""
    return f"<code>{html.escape(' '.join(name.split()), quote=False).replace('|', '&#124;')}</code>"


def _unbroken(said: str) -> str:
    """Text in a ``pre`` element: an empty line would end the element for Markdown."""
    return "\n".join(line or "&nbsp;" for line in said.splitlines())


def _cut(blocks: Sequence[str], limit: int) -> str:
    """The first blocks whose lines take at most ``limit`` bytes, with a line that counts the rest."""
    kept: list[str] = []
    room = limit - 100
    for block in blocks:
        room -= len(block.encode("utf-8", "replace")) + 1
        if room < 0:
            kept.append(f"\n... and {form.count(len(blocks) - len(kept), 'more line')} left out")
            break
        kept.append(block)
    return "\n".join(kept) + "\n"
