"""Questions as request bodies, one pair of functions for each wire format.

``..._body`` makes what every server of the format takes, ``..._parts`` what some refuse. A request starts out with all
parts; a part that an error names is replaced by its next form, in the end left out (``dialect.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

from pytest_kerneltune.search import Message

Body: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """How to ask: the model and its settings, of which ``None`` and "" leave the choice to the provider.

    ``effort`` is how hard a model reasons: none, minimal, low, medium, high, xhigh or max; a provider that knows fewer
    levels gets its nearest. ``stream`` asks for the reply while it is written.
    """

    model: str
    max_output_tokens: int = 16_000
    temperature: float | None = None
    effort: str = ""
    stream: bool = True


@dataclass(frozen=True)
class Part:
    """Fields that a server may refuse: ``forms`` are tried one after the other, then none.

    ``words`` is a pattern of the errors that mean this part.
    """

    name: str
    words: str
    forms: tuple[Body, ...]


STREAM, CACHE = "stream", "cache"
"""Parts that have no say in what the answer is."""

_CAP_WORDS = r"max_(completion_|output_)?tokens|completion tokens|in the completion"
_SCHEMA_WORDS = r"format|schema|structured|grammar|output_config|\bstrict\b"
_EFFORT_WORDS = r"effort|reasoning|think|output_config(?!\.format)"
_SCHEMA_NAME = "configs"

# Every current model takes this many.
_LEAST_CAP = 4096


def merged(body: Body, fields: Body) -> Body:
    """``body`` with ``fields`` put into it, objects into objects."""
    result = dict(body)
    for name, value in fields.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _system(messages: Sequence[Message]) -> str:
    return "\n\n".join(m.content for m in messages if m.role == "system")


def _turns(messages: Sequence[Message]) -> list[Body]:
    return [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]


def _conversation(messages: Sequence[Message]) -> list[Body]:
    """System and turns in one list."""
    system = _system(messages)
    return [*([{"role": "system", "content": system}] if system else []), *_turns(messages)]


def _temperature(ask: Ask) -> Iterator[Part]:
    if ask.temperature is not None:
        yield Part("temperature", "temperature", ({"temperature": ask.temperature},))


def _stream(ask: Ask, *forms: Body) -> Iterator[Part]:
    if ask.stream:
        yield Part(STREAM, "stream|include_usage", forms or ({"stream": True},))


# OpenAI Responses


def responses_body(messages: Sequence[Message], ask: Ask) -> Body:
    body: Body = {"model": ask.model, "input": _turns(messages)}
    return body | ({"instructions": system} if (system := _system(messages)) else {})


def responses_parts(messages: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    yield Part("cap", _CAP_WORDS, ({"max_output_tokens": ask.max_output_tokens},))
    yield Part("store", r"\bstore\b", ({"store": False},))
    yield Part(CACHE, "cache", ({"prompt_cache_key": _prefix_id(messages)},))
    yield from _temperature(ask)
    if ask.effort:
        yield Part("effort", _EFFORT_WORDS, ({"reasoning": {"effort": ask.effort}},))
    if schema is not None:
        structured = {"type": "json_schema", "name": _SCHEMA_NAME, "strict": True, "schema": schema}
        yield Part("schema", rf"{_SCHEMA_WORDS}|\btext\b", ({"text": {"format": structured}},))
    yield from _stream(ask)


def _prefix_id(messages: Sequence[Message]) -> str:
    """The same for all requests of one conversation: by it a provider finds what it has read before."""
    first = next((m.content for m in messages if m.role == "user"), "")
    return sha256(f"{_system(messages)}\n{first}".encode()).hexdigest()[:32]


# Anthropic Messages

_ANTHROPIC_EFFORTS = {"minimal": "low"}


def anthropic_body(messages: Sequence[Message], ask: Ask) -> Body:
    body: Body = {"model": ask.model, "max_tokens": _LEAST_CAP, "messages": _turns(messages)}
    return body | ({"system": system} if (system := _system(messages)) else {})


def anthropic_parts(messages: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    yield Part("cap", rf"{_CAP_WORDS}|output tokens", ({"max_tokens": ask.max_output_tokens},))
    yield Part(CACHE, "cache", (_anthropic_marked(messages),))
    yield from _temperature(ask)
    if ask.effort == "none":
        yield Part("effort", _EFFORT_WORDS, ({"thinking": {"type": "disabled"}},))
    elif ask.effort:
        level = {"output_config": {"effort": _ANTHROPIC_EFFORTS.get(ask.effort, ask.effort)}}
        yield Part("effort", _EFFORT_WORDS, ({"thinking": {"type": "adaptive"}, **level}, level))
    if schema is not None:
        structured = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        yield Part("schema", _SCHEMA_WORDS, (structured,))
    yield from _stream(ask)


def _anthropic_marked(messages: Sequence[Message]) -> Body:
    """The conversation with marks behind what later requests begin with, too: up to there it is cached."""
    turns = _turns(messages)
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is not None:
        turns[first] = {"role": "user", "content": _marked(turns[first]["content"])}
    body: Body = {"messages": turns}
    return body | ({"system": _marked(system)} if (system := _system(messages)) else {})


def _marked(text: str) -> list[Body]:
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]


# Chat Completions


def chat_body(messages: Sequence[Message], ask: Ask) -> Body:
    """With the system's text in the user's first message, as models want it whose template has no place for it."""
    joined = _turns(messages)
    if joined and (system := _system(messages)):
        joined[0]["content"] = f"{system}\n\n{joined[0]['content']}"
    return {"model": ask.model, "messages": joined}


def chat_parts(messages: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    if ask.effort:
        yield Part("effort", _EFFORT_WORDS, ({"reasoning_effort": ask.effort},))
    yield from _chat_parts(messages, ask, schema)


def openrouter_parts(messages: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    if ask.effort:
        yield Part("effort", _EFFORT_WORDS, ({"reasoning": {"effort": ask.effort}},))
    if ask.model.startswith("anthropic/"):  # other makers' models find out themselves what they have read before
        yield Part(CACHE, "cache", ({"cache_control": {"type": "ephemeral"}},))
    for part in _chat_parts(messages, ask, schema):
        if part.name == "schema":  # only to servers that keep to it
            forms = tuple(form | {"provider": {"require_parameters": True}} for form in part.forms)
            part = Part(part.name, rf"{part.words}|no endpoints|require_parameters", forms)
        yield part


def _chat_parts(messages: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    cap = ask.max_output_tokens
    if _system(messages):
        yield Part(
            "system", r"system.{0,20}role|role.{0,20}system|must alternate", ({"messages": _conversation(messages)},)
        )
    # Most servers know only the older of the two names, OpenAI's newer models only the newer one.
    yield Part("cap", _CAP_WORDS, ({"max_completion_tokens": cap}, {"max_tokens": cap}))
    yield from _temperature(ask)
    if schema is not None:
        structured = {"type": "json_schema", "json_schema": {"name": _SCHEMA_NAME, "strict": True, "schema": schema}}
        forms = ({"response_format": structured}, {"response_format": {"type": "json_object"}})
        yield Part("schema", _SCHEMA_WORDS, forms)
    # Tokens are counted in a stream on demand only.
    yield from _stream(ask, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": True})


# Ollama

_OLLAMA_EFFORTS = {"none": False, "minimal": "low", "xhigh": "high", "max": "high"}
_OLLAMA_LEAST_CONTEXT, _OLLAMA_REPLY = 8192, 8192
_CHARACTERS_A_TOKEN = 3


def ollama_body(messages: Sequence[Message], ask: Ask) -> Body:
    options: Body = {"num_predict": ask.max_output_tokens, "num_ctx": _ollama_context(messages, ask)}
    if ask.temperature is not None:
        options["temperature"] = ask.temperature
    # Without the field it streams.
    return {"model": ask.model, "messages": _conversation(messages), "stream": False, "options": options}


def ollama_parts(_: Sequence[Message], ask: Ask, schema: Schema | None) -> Iterator[Part]:
    if ask.effort:
        yield Part("effort", "think", ({"think": _OLLAMA_EFFORTS.get(ask.effort, ask.effort)},))
    if schema is not None:
        yield Part("schema", _SCHEMA_WORDS, ({"format": schema},))
    yield from _stream(ask)


def _ollama_context(messages: Sequence[Message], ask: Ask) -> int:
    """Tokens that question and reply need, as a power of two: a prompt longer than the context is cut silently, and
    another context makes the server load the model anew."""
    needed = sum(len(m.content) for m in messages) // _CHARACTERS_A_TOKEN + min(ask.max_output_tokens, _OLLAMA_REPLY)
    return max(_OLLAMA_LEAST_CONTEXT, 1 << (needed - 1).bit_length())
