"""What is said to a language model: prompts as pure text.

A message is a run of sections, each begun by a line "## Title". The text depends on nothing but the arguments, so that
one question always has one wording. What differs from machine to machine or run to run stands in the sections named by
``LOCAL_SECTIONS``: without their bodies a conversation is the same everywhere, and recorded replies can be found by it.

The system message comes first and is the same for every kernel of a kind; in the user's message what stays the same
over runs precedes what changes, as providers' prompt caches want it.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_kerneltune.parameter import Boolean, Choice, ListOf, Parameter, Permutation
from pytest_kerneltune.search import Message, Related, Subject, findings
from pytest_kerneltune.search.advice import has_products, workload
from pytest_kerneltune.search.findings import as_json, bullets, differing, one_line, sparse
from pytest_kerneltune.search.hardware import hardware_lines
from pytest_kerneltune.search.heuristics import heuristics
from pytest_kerneltune.search.instructions import (
    NEXT,
    NEXT_AFTER_FAILURES,
    REPLY_FORMAT,
    SOURCE_OF_TRUTH,
    role,
    strategy,
    task,
)
from pytest_kerneltune.search.knobs import knobs, language
from pytest_kerneltune.search.replies import reply_schema
from pytest_kerneltune.search.roofline import roof, roof_lines
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Trial

LOCAL_SECTIONS = frozenset(
    {
        "Hardware",
        "Roofs",
        "Related kernels",
        "Measured so far",
        "Search state",
        "Anchors",
        "Best results",
        "Patterns",
        "Failures",
        "Last reply",
        "Next step",
    }
)
"""Titles of the sections that depend on the machine or on what was measured."""

_KERNEL = "Kernel"


class Request(list[Message]):
    """The messages to send, with the JSON schema of the reply for providers that enforce one (None: any)."""

    schema: Mapping[str, Any] | None

    def __init__(self, messages: Iterable[Message], schema: Mapping[str, Any] | None = None) -> None:
        super().__init__(messages)
        self.schema = schema


def first_request(
    subject: Subject,
    space: ConfigSpace,
    count: int,
    seeds: Sequence[Config] = (),
    results: Sequence[Trial] = (),
    related: Related = (),
) -> Request:
    """Ask for ``count`` first configs of a kernel: a system message and one of the user's.

    ``seeds`` are configs its author recommends, ``results`` trials of earlier runs, ``related`` those of related
    kernels.
    """
    system = _message(
        {
            "Role": role(subject.kind),
            "Source of truth": SOURCE_OF_TRUTH,
            "Knobs": knobs(subject.kind),
            "Heuristics": heuristics(subject.kind),
            "Reply format": REPLY_FORMAT,
        }
    )
    user = _message(
        {
            _KERNEL: _kernel(subject),
            "Inputs": bullets(subject.inputs),
            "Configuration space": _space(space, subject.constraint),
            "Default config": as_json(space.default),
            "Workload": bullets(workload(subject, space.names)),
            "Configs its author recommends": bullets(sparse(space, space.canonical(seed)) for seed in seeds),
            "Hardware": bullets(hardware_lines(subject.kind, subject.hardware, has_products(subject, space.names))),
            "Roofs": bullets(_roofs(subject, space, results)),
            "Related kernels": findings.related(space, related),
            "Measured so far": findings.results(space, results),
            "Strategy": strategy(count),
            "Task": task(count, 1),
        }
    )
    return Request([Message("system", system), Message("user", user)], reply_schema(space))


def refine_request(
    space: ConfigSpace,
    trials: Sequence[Trial],
    count: int,
    number: int,
    dropped: Mapping[str, int] | None = None,
    *,
    subject: Subject | None = None,
    before_ms: float = math.inf,
) -> Message:
    """Ask for ``count`` more configs in round ``number`` (the first request was round 1).

    ``trials`` is all that was measured, ``dropped`` what was dropped from the last reply and why, ``subject`` the
    kernel, for its distance from the roof, ``before_ms`` the best latency before the last round (inf: there was none).
    """
    failed = [t for t in trials if not t.ok]
    bounds = roof(subject, space.names) if subject else None
    return Message(
        "user",
        _message(
            {
                "Search state": findings.state(space, trials, before_ms, bounds),
                "Anchors": findings.anchors(space, trials),
                "Best results": findings.results(space, trials),
                "Patterns": findings.patterns(space, trials),
                "Failures": findings.failures(space, trials),
                "Last reply": bullets(f"{n} x {reason}" for reason, n in (dropped or {}).items()),
                "Next step": NEXT_AFTER_FAILURES if trials and len(failed) * 3 >= len(trials) else NEXT,
                "Task": task(count, number),
            }
        ),
    )


def reply_text(configs: Iterable[Config], default: Config | None = None) -> str:
    """A reply that proposes ``configs``, as the conversation so far quotes it: by what differs from ``default``."""
    return json.dumps({"configs": [dict(differing(c, default or {})) for c in configs]}, separators=(",", ":"))


def without_sections(text: str, titles: Iterable[str]) -> str:
    """``text`` without the sections called ``titles``."""
    hidden, kept, left_out = frozenset(titles), [], False
    for line in text.split("\n"):
        if line.startswith("## "):
            left_out = line[3:].strip() in hidden
        if not left_out:
            kept.append(line)
    return "\n".join(kept).rstrip()


def kernel_name(messages: Sequence[Message]) -> str:
    """The name of the kernel a conversation is about; empty where it says none."""
    for message in messages:
        lines = message.content.split("\n")
        if message.role == "user" and f"## {_KERNEL}" in lines:
            return lines[lines.index(f"## {_KERNEL}") + 1].removeprefix("Name: ")
    return ""


# Sections made from the arguments


def _message(sections: Mapping[str, str]) -> str:
    return "\n\n".join(f"## {title}\n{body}" for title, body in sections.items() if body)


def _kernel(subject: Subject) -> str:
    lines = [f"Name: {one_line(subject.name) or 'unnamed'}", f"Kind: {language(subject.kind)}"]
    lines += [f"Fact: {one_line(fact)}" for fact in subject.facts]
    if subject.source:
        # Indented, so that no line of the source can look like a section's title.
        lines += ["Source:", "", textwrap.indent(subject.source.strip("\n"), "    ")]
    else:
        lines.append("The source is not shown: go by name, inputs and parameters.")
    return "\n".join(lines)


def _roofs(subject: Subject, space: ConfigSpace, results: Sequence[Trial]) -> list[str]:
    bounds = roof(subject, space.names)
    return [*roof_lines(subject, space.names), *findings.default_result(space, results, bounds)]


def _space(space: ConfigSpace, constraint: str) -> str:
    before = " before the constraint" if space.where is not None else ""
    lines = [f"{'At most ' if space.conditions else ''}{space.size} combinations{before}."]
    lines += [f"- {one_line(name)}: {_parameter(space, name)}" for name in space.names]
    if space.conditions:
        lines.append("Where a parameter does not matter it keeps its default, whatever a config says.")
    if constraint:
        lines += ["Constraint (must be true of every config):", "", textwrap.indent(constraint.strip("\n"), "    ")]
    elif space.where is not None:
        lines.append("A further constraint is not shown; configs that break it are dropped.")
    return "\n".join(lines)


def _parameter(space: ConfigSpace, name: str) -> str:
    parameter, when = space.parameters[name], one_line(space.conditions.words(name, json.dumps))
    text = f"{_values(parameter)}; default {json.dumps(space.default[name])}"
    return f"{text}; only matters where {when}" if when else text


def _values(parameter: Parameter) -> str:
    """The values as they should be written in a reply."""
    if isinstance(parameter, Choice):
        return "one of " + ", ".join(json.dumps(option) for option in parameter.options)
    if isinstance(parameter, Boolean):
        return "true or false"
    if isinstance(parameter, Permutation):
        return f"array of 0 to {parameter.length - 1} in any order"
    if isinstance(parameter, ListOf):
        return f"array of exactly {parameter.length}, each: {_values(parameter.inner)}"
    return parameter.describe()
