"""What is particular to each provider of language models: one row each.

A row says where requests go, how they are signed, how messages become a request's body and how a response's body
becomes an :class:`Answer`. To add a provider, write ``body`` and ``read`` functions and a row in ``PROVIDERS``;
everything else (limits, retries, redaction) is shared by all and lives in ``http.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.search import Message

Body: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A reply's text and what it cost in tokens (None: not said); ``remark`` is not "ok" where it was cut off."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    remark: str = "ok"


@dataclass(frozen=True)
class Provider:
    """One provider.

    ``base`` and ``path`` make the address; the path begins with the API's version, which a user's base may hold too.
    ``models`` matches the names of its models, ``key_prefix`` begins its keys. ``sign`` makes the headers that carry
    the key. ``body`` takes messages, model and limit of output tokens; ``structured`` gives the fields to add so that
    the reply follows a schema. ``read`` takes the decoded response and raises LLMError where it holds no answer.
    """

    name: str
    key_variable: str
    key_prefix: str
    base_variable: str
    base: str
    path: str
    default_model: str
    models: str
    sign: Callable[[str], dict[str, str]]
    headers: Mapping[str, str]
    body: Callable[[Sequence[Message], str, int], Body]
    structured: Callable[[Schema], Body]
    read: Callable[[Mapping[str, Any]], Answer]


def _system(messages: Sequence[Message]) -> str:
    return "\n\n".join(m.content for m in messages if m.role == "system")


def _turns(messages: Sequence[Message]) -> list[Body]:
    return [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]


def _objects(items: Any) -> Iterator[Mapping[str, Any]]:
    """The objects of a list; nothing where it is none."""
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))


def _texts(parts: Any, kind: str, name: str = "text") -> str:
    """The texts of all parts of a type, joined."""
    return "".join(str(p.get(name) or "") for p in _objects(parts) if p.get("type") == kind)


def _tokens(usage: Any, *names: str) -> int | None:
    """The sum of the counts that a usage object holds under ``names``; None where it holds none."""
    counts = [usage.get(n) for n in names] if isinstance(usage, dict) else []
    known = [n for n in counts if isinstance(n, int)]
    return sum(known) if known else None


def _answer(text: str, stopped: str, refusal: str, tokens_in: int | None, tokens_out: int | None) -> Answer:
    """The answer, if there is one. ``stopped`` says why the text ended where that was not its end."""
    if refusal:
        raise LLMError(f"the model refused to answer: {refusal}")
    if text.strip():
        return Answer(text, tokens_in, tokens_out, f"cut off ({stopped})" if stopped else "ok")
    if stopped and "token" in stopped:
        spent = "" if tokens_out is None else f" of {tokens_out}"
        raise LLMError(f"the model spent its output tokens{spent} before it wrote an answer ({stopped})")
    raise LLMError(f"the model gave no answer ({stopped or 'the reply holds no text'})")


# OpenAI Responses


def _openai_body(messages: Sequence[Message], model: str, max_tokens: int) -> Body:
    body = {"model": model, "input": _turns(messages), "max_output_tokens": max_tokens, "store": False}
    return body | ({"instructions": system} if (system := _system(messages)) else {})


def _openai_structured(schema: Schema) -> Body:
    return {"text": {"format": {"type": "json_schema", "name": "configs", "strict": True, "schema": schema}}}


def _openai_read(payload: Mapping[str, Any]) -> Answer:
    items = [item for item in _objects(payload.get("output")) if item.get("type") == "message"]
    text = "".join(_texts(item.get("content"), "output_text") for item in items)
    refusal = "".join(_texts(item.get("content"), "refusal", "refusal") for item in items)
    stopped = "" if payload.get("status", "completed") == "completed" else str(payload["status"])
    details = payload.get("incomplete_details")
    if stopped and isinstance(details, dict) and details.get("reason"):
        stopped = str(details["reason"])
    usage = payload.get("usage")
    return _answer(text, stopped, refusal, _tokens(usage, "input_tokens"), _tokens(usage, "output_tokens"))


# Anthropic Messages

_ANTHROPIC_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _anthropic_body(messages: Sequence[Message], model: str, max_tokens: int) -> Body:
    body = {"model": model, "messages": _turns(messages), "max_tokens": max_tokens}
    return body | ({"system": system} if (system := _system(messages)) else {})


def _anthropic_structured(schema: Schema) -> Body:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def _anthropic_read(payload: Mapping[str, Any]) -> Answer:
    text = _texts(payload.get("content"), "text")
    reason = str(payload.get("stop_reason") or "end_turn")
    details = payload.get("stop_details")
    explained = str(details.get("explanation") or "") if isinstance(details, dict) else ""
    refusal = (explained or "stop_reason refusal") if reason == "refusal" else ""
    stopped = "" if reason in ("end_turn", "stop_sequence") else reason
    usage = payload.get("usage")
    return _answer(text, stopped, refusal, _tokens(usage, *_ANTHROPIC_INPUT), _tokens(usage, "output_tokens"))


PROVIDERS = (
    Provider(
        name="openai",
        key_variable="OPENAI_API_KEY",
        key_prefix="sk-",
        base_variable="OPENAI_BASE_URL",
        base="https://api.openai.com",
        path="/v1/responses",
        default_model="gpt-5.5",
        models=r"(gpt|chatgpt|codex|o\d)",
        sign=lambda key: {"authorization": f"Bearer {key}"},
        headers={},
        body=_openai_body,
        structured=_openai_structured,
        read=_openai_read,
    ),
    Provider(
        name="anthropic",
        key_variable="ANTHROPIC_API_KEY",
        key_prefix="sk-ant-",
        base_variable="ANTHROPIC_BASE_URL",
        base="https://api.anthropic.com",
        path="/v1/messages",
        default_model="claude-opus-5-5",
        models=r"claude",
        sign=lambda key: {"x-api-key": key},
        headers={"anthropic-version": "2023-06-01"},
        body=_anthropic_body,
        structured=_anthropic_structured,
        read=_anthropic_read,
    ),
)
"""All providers that are asked over HTTP; where several could be used, the first."""


def provider_named(name: str) -> Provider | None:
    return next((p for p in PROVIDERS if p.name == name), None)


def provider_of_model(model: str) -> Provider | None:
    """The provider whose models have names like ``model``, a gateway's prefix ("anthropic/...") left out."""
    return next((p for p in PROVIDERS if re.match(p.models, model.rsplit("/", 1)[-1].lower())), None)


def provider_of_key(key: str) -> Provider:
    """The provider whose keys begin most like ``key``; the first where none do."""
    matching = [p for p in PROVIDERS if key.strip().startswith(p.key_prefix)]
    return max(matching, key=lambda p: len(p.key_prefix), default=PROVIDERS[0])
