"""Whole response bodies as answers, one function for each wire format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm.access import variable


@dataclass(frozen=True)
class Answer:
    """A reply's text and what it cost in tokens (None: not said); ``remark`` is not "ok" where it was cut off."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    remark: str = "ok"


ENDLESS = "ok; the rest of an endless reply was not read"
"""The remark on an answer that was read only as far as it was wanted."""


_CUT_OFF = "cut off"


def is_complete(answer: Answer) -> bool:
    """Whether it did not end early."""
    return not answer.remark.startswith(_CUT_OFF)


def cut_off(why: str, advice: str = "") -> str:
    """The remark on an answer that ended early."""
    return f"{_CUT_OFF} ({why})" + (f"; {advice}" if advice else "")


def objects(items: Any) -> Iterator[dict[str, Any]]:
    """The objects of a list; nothing where it is none."""
    if isinstance(items, list):
        yield from (item for item in items if isinstance(item, dict))


def first_object(items: Any) -> dict[str, Any]:
    """The first object of a list; an empty one where there is none."""
    return next(objects(items), {})


def as_object(value: Any) -> dict[str, Any]:
    """``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def plain_text(content: Any) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    return content if isinstance(content, str) else _texts(content, "text") + _texts(content, "output_text")


def reported_error(payload: Mapping[str, Any]) -> Any:
    """What a body with a good status reports as an error; None or something empty where it does not."""
    return payload.get("error") or first_object(payload.get("choices")).get("error")


def read_responses(payload: Mapping[str, Any]) -> Answer:
    """OpenAI Responses."""
    items = [item for item in objects(payload.get("output")) if item.get("type") == "message"]
    text = "".join(_texts(item.get("content"), "output_text") for item in items)
    refusal = "".join(_texts(item.get("content"), "refusal", "refusal") for item in items)
    status = str(payload.get("status") or "completed")
    stopped = str(as_object(payload.get("incomplete_details")).get("reason") or status)
    return _answer(text, "" if status == "completed" else stopped, refusal, payload.get("usage"))


def read_anthropic(payload: Mapping[str, Any]) -> Answer:
    """Anthropic Messages."""
    reason = str(payload.get("stop_reason") or "end_turn")
    explained = str(as_object(payload.get("stop_details")).get("explanation") or f"stop_reason {reason}")
    stopped = "" if reason in ("end_turn", "stop_sequence") else reason
    text = _texts(payload.get("content"), "text")
    return _answer(text, stopped, explained if reason == "refusal" else "", payload.get("usage"))


def read_chat(payload: Mapping[str, Any]) -> Answer:
    """Chat Completions."""
    choices = payload.get("choices")
    if isinstance(choices, list) and not choices:
        raise LLMError("the model gave no answer (the reply holds no choices)")
    choice = first_object(choices)
    message = as_object(choice.get("message"))
    reason = str(choice.get("finish_reason") or "stop")
    refusal = str(message.get("refusal") or "")
    stopped = "" if reason in ("stop", "eos") else reason
    return _answer(plain_text(message.get("content")), stopped, refusal, payload.get("usage"))


def read_ollama(payload: Mapping[str, Any]) -> Answer:
    """Ollama's own format."""
    reason = str(payload.get("done_reason") or "stop")
    text = plain_text(as_object(payload.get("message")).get("content"))
    return _answer(text, "" if reason == "stop" else reason, "", payload)


_IN = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "prompt_tokens", "prompt_eval_count")
_OUT = ("output_tokens", "completion_tokens", "eval_count")


def tokens(usage: Any) -> tuple[int | None, int | None]:
    """Tokens in and out of a usage object; Anthropic does not count what it found in its cache as input, we do."""
    return _sum(usage, _IN), _sum(usage, _OUT)


def _sum(usage: Any, names: tuple[str, ...]) -> int | None:
    counts = [as_object(usage).get(name) for name in names]
    known = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return sum(known) if known else None


def _texts(parts: Any, kind: str, name: str = "text") -> str:
    """The texts of all parts of a type, joined."""
    return "".join(p[name] for p in objects(parts) if p.get("type") == kind and isinstance(p.get(name), str))


def _answer(text: str, stopped: str, refusal: str, usage: Any) -> Answer:
    """The answer, if there is one. ``stopped`` says why the text ended where that was not its end."""
    if refusal:
        raise LLMError(f"the model refused to answer: {refusal}")
    tokens_in, tokens_out = tokens(usage)
    too_short = re.search("token|length", stopped)
    if text.strip():
        advice = f"raise {variable('MAX_OUTPUT_TOKENS')}" if too_short else ""
        return Answer(text, tokens_in, tokens_out, cut_off(stopped, advice) if stopped else "ok")
    if too_short:
        raise LLMError(f"the model spent its output tokens{_spent(usage, tokens_out)} before it wrote an answer")
    raise LLMError(f"the model gave no answer ({stopped or 'the reply holds no text'})")


def _spent(usage: Any, tokens_out: int | None) -> str:
    if tokens_out is None:
        return ""
    details = [as_object(usage).get(name) for name in ("output_tokens_details", "completion_tokens_details")]
    thought = _sum(next(filter(None, details), None), ("reasoning_tokens",))
    return f" ({tokens_out}{'' if thought is None else f', {thought} of them on reasoning'})"
