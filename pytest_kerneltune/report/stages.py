"""Which stage of a search found what, for searches of several stages, and what a language model did."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kerneltune.outcome import ModelSummary, Outcome, StageSummary
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.terminal import Line


def stage_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """A line for each kernel that a search of several stages tuned in this run, and one for a model's account."""
    names = form.labels(outcomes)
    lines = []
    for outcome in outcomes:
        name, search = names[outcome.id], outcome.search
        if len(search.stages) > 1:
            lines.append(Line(f"{name}: {'; '.join(map(_words, search.stages))}", {}))
        if search.model is not None:
            lines.append(Line(f"{name}: {form.one_line(model_account(search.model))}", {}))
    return lines


def model_account(model: ModelSummary) -> str:
    """What a language model cost and what its configs were worth, in a line."""
    parts = [form.count(model.calls, "call")]
    parts += [f"{model.cached} answered from earlier replies"] if model.cached else []
    parts += [f"{model.failed} failed"] if model.failed else []
    known = ((model.tokens_in, "in"), (model.tokens_out, "out"))
    parts += [f"{number:,} tokens {way}" for number, way in known if number is not None]
    parts.append(form.duration(model.seconds))
    text = f"{model.label}: {', '.join(parts)}"
    if not model.proposed:
        return f"{text}; no configs proposed"
    winner = "the tuned config is its own" if model.found_winner else "the tuned config is not its own"
    return (
        f"{text}; {form.count(model.proposed, 'config')} proposed, {model.valid} valid, {model.new} new; "
        f"{model.among_fastest} of the {model.fastest} fastest, {winner}"
    )


def _words(stage: StageSummary) -> str:
    parts = [form.count(stage.configs, "config")]
    if stage.failed:
        parts.append(f"{stage.failed} failed")
    if stage.best_ms is not None:
        parts.append(f"best {form.latency(stage.best_ms)}")
    if stage.note:
        parts.append(stage.note)
    return f"{stage.stage} {', '.join(parts)}"
