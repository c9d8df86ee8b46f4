"""What is particular to each provider of language models: one row each.

A row says where requests go, how they are signed and in which wire format; a format is how messages become a request's
body (``bodies.py``), how a response's body becomes an :class:`Answer` (``answers.py``) and how a streamed one becomes a
body (``streams.py``). Everything else (limits, retries, redaction) is shared by all and lives in ``http.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_kerneltune.llm import answers, bodies, streams
from pytest_kerneltune.llm.answers import Answer as Answer
from pytest_kerneltune.llm.bodies import Ask as Ask
from pytest_kerneltune.llm.bodies import Body as Body
from pytest_kerneltune.llm.bodies import Part, Schema
from pytest_kerneltune.search import Message


@dataclass(frozen=True)
class Format:
    """One wire format: ``body`` and ``parts`` make requests, ``read`` (raises LLMError) and ``merge`` read replies."""

    path: str
    body: Callable[[Sequence[Message], Ask], Body]
    parts: Callable[[Sequence[Message], Ask, Schema | None], Iterable[Part]]
    read: Callable[[Mapping[str, Any]], Answer]
    merge: streams.Merge


RESPONSES = Format(
    "/v1/responses",
    bodies.responses_body,
    bodies.responses_parts,
    answers.read_responses,
    streams.merge_responses,
)
MESSAGES = Format(
    "/v1/messages",
    bodies.anthropic_body,
    bodies.anthropic_parts,
    answers.read_anthropic,
    streams.merge_anthropic,
)
CHAT = Format(
    "/v1/chat/completions",
    bodies.chat_body,
    bodies.chat_parts,
    answers.read_chat,
    streams.merge_chat,
)
OLLAMA = Format(
    "/api/chat",
    bodies.ollama_body,
    bodies.ollama_parts,
    answers.read_ollama,
    streams.merge_ollama,
)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _ollama_address(host: str) -> str:
    """The address that ``OLLAMA_HOST`` means: scheme and port may be missing, and it may say where a server listens."""
    scheme, mark, rest = host.strip().rpartition("://")
    place, slash, path = rest.partition("/")
    if (parts := re.fullmatch(r"(\[[^]]*\]|[^:@]*)(:\d*)?", place)) is None:
        return host
    name, port = parts.groups()
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
    return f"{scheme or 'http'}://{name}{port or ('' if mark else ':11434')}{slash}{path}"


@dataclass(frozen=True)
class Provider:
    """One provider.

    ``base`` and the format's ``path`` make the address; the path begins with the API's version, which a user's base
    may hold too. Where ``base`` or ``default_model`` is empty, the user must say. ``address`` makes an address of what
    users set as base. ``models`` matches the names of its models, ``key_prefix`` begins its keys. ``sign`` makes the
    headers that carry the key, without which nothing is answered where ``key_required``.
    """

    name: str
    format: Format
    key_variable: str
    base_variable: str
    base: str
    default_model: str
    aliases: Collection[str] = ()
    key_prefix: str = ""
    key_required: bool = True
    models: str = r"(?!)"
    sign: Callable[[str], dict[str, str]] = _bearer
    headers: Mapping[str, str] = field(default_factory=dict)
    address: Callable[[str], str] = str.strip

    @property
    def path(self) -> str:
        return self.format.path


PROVIDERS = (
    Provider(
        "openai",
        RESPONSES,
        key_variable="OPENAI_API_KEY",
        base_variable="OPENAI_BASE_URL",
        base="https://api.openai.com",
        default_model="gpt-5.5",
        aliases=("openai-responses", "responses"),
        key_prefix="sk-",
        models=r"(.*/)?(ft:)?(gpt(?!-oss)|chatgpt|codex|o\d)",
    ),
    Provider(
        "anthropic",
        MESSAGES,
        key_variable="ANTHROPIC_API_KEY",
        base_variable="ANTHROPIC_BASE_URL",
        base="https://api.anthropic.com",
        default_model="claude-opus-5-5",
        aliases=("anthropic-messages", "messages", "claude"),
        key_prefix="sk-ant-",
        models=r"(.*/)?claude",
        sign=lambda key: {"x-api-key": key},
        headers={"anthropic-version": "2023-06-01"},
    ),
    Provider(
        "chat",
        CHAT,
        key_variable="OPENAI_API_KEY",
        base_variable="OPENAI_BASE_URL",
        base="",
        default_model="",
        aliases=("chat-completions", "openai-chat", "openai-compatible", "vllm", "litellm", "llama.cpp", "llamacpp"),
        key_required=False,
    ),
    Provider(
        "openrouter",
        replace(CHAT, parts=bodies.openrouter_parts),
        key_variable="OPENROUTER_API_KEY",
        base_variable="",
        base="https://openrouter.ai/api",
        default_model="openai/gpt-5.5",
        aliases=("open-router",),
        key_prefix="sk-or-",
        models=r"openrouter/",
    ),
    Provider(
        "ollama",
        OLLAMA,
        key_variable="OLLAMA_API_KEY",
        base_variable="OLLAMA_HOST",
        base="http://localhost:11434",
        default_model="",
        aliases=("ollama-chat",),
        key_required=False,
        # Names with a tag, except for those of hosts of other makers' models.
        models=r"(?!ft:|.*claude)(hf\.co/.+|[^/:]+):[\w.-]+$",
        address=_ollama_address,
    ),
)
"""All providers that are asked over HTTP; where several could be used, the first."""


def provider_named(name: str) -> Provider | None:
    """The provider of that name or alias; case and underscores do not matter."""
    name = name.strip().lower().replace("_", "-")
    return next((p for p in PROVIDERS if name == p.name or name in p.aliases), None)


def provider_of_model(model: str, keys: Iterable[str] = ()) -> Provider | None:
    """The provider whose models have names like ``model``; None where it might be anyone's.

    "vendor/model" is OpenRouter's way to name models, if one of the user's ``keys`` is for it; a gateway's else.
    """
    if "/" in model:
        for row in map(provider_of_key, keys):
            if row.name == "openrouter":
                return row
    return next((p for p in PROVIDERS if re.match(p.models, model.strip().lower())), None)


def provider_of_key(key: str) -> Provider:
    """The provider whose keys begin most like ``key``; the first where none do."""
    matching = [p for p in PROVIDERS if p.key_prefix and key.strip().startswith(p.key_prefix)]
    return max(matching, key=lambda p: len(p.key_prefix), default=PROVIDERS[0])
