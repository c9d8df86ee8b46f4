"""Replies recorded in a file, replayed without a network.

The file is JSON: ``{"schema": 1, "exchanges": [{"request", "model", "kernel", "messages", "reply"}, ...]}``.
``request`` identifies the conversation up to the reply: the SHA-256 of its messages without the sections that depend on
the machine or on measurements (``dialogue.LOCAL_SECTIONS``). So a conversation recorded on one machine replays on any
other, round by round, as long as kernel, inputs and space are the same.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import LOCAL_SECTIONS, kernel_name, without_sections

_SCHEMA = 1
_UNNAMED = "this kernel"


def request_id(messages: Sequence[Message]) -> str:
    """The hex digest by which a conversation is found in a file of recorded replies."""
    canonical = [[m.role, without_sections(m.content, LOCAL_SECTIONS)] for m in messages]
    return sha256(json.dumps(canonical, separators=(",", ":")).encode()).hexdigest()


class RecordedReplies:
    """Answers from the file ``path``; raises LLMUnavailable where it is missing or no such file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies = {e["request"]: e for e in _load(path)["exchanges"]}

    @property
    def label(self) -> str:
        models = sorted({str(e.get("model") or "unknown model") for e in self._replies.values()})
        return f"recorded replies ({', '.join(models) or 'none'}) from {self._path.name}"

    def close(self) -> None:
        """Nothing is open."""

    def ask(self, messages: Sequence[Message]) -> Answer:
        """The recorded reply to ``messages``; raises LLMError where there is none."""
        digest = request_id(messages)
        if digest not in self._replies:
            kernel = kernel_name(messages) or _UNNAMED
            raise LLMError(f"{self._path.name} holds no recorded reply to this request for {kernel} ({digest[:12]})")
        return Answer(self._replies[digest]["reply"], remark="replayed")


def add_exchange(
    path: str | os.PathLike[str], messages: Sequence[Message], reply: str, model: str, kernel: str = ""
) -> str:
    """Record a reply in the file ``path``, in place of an earlier one to the same request; returns its id.

    The file is made where it does not exist and replaced in one step; two writers at once are not guarded against.
    """
    file = Path(path)
    document: dict[str, Any] = _load(file) if file.exists() else {"schema": _SCHEMA, "exchanges": []}
    digest = request_id(messages)
    exchange = {
        "request": digest,
        "model": model,
        "kernel": kernel or kernel_name(messages),
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "reply": reply,
    }
    document["exchanges"] = [*(e for e in document["exchanges"] if e["request"] != digest), exchange]
    _replace(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return digest


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LLMUnavailable(f"the file of recorded replies {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise LLMUnavailable(f"the file of recorded replies {path} is not JSON") from None
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA or not _are_exchanges(document):
        raise LLMUnavailable(f"{path} is not a file of recorded replies of schema {_SCHEMA}")
    return document


def _are_exchanges(document: Mapping[str, Any]) -> bool:
    exchanges = document.get("exchanges")
    return isinstance(exchanges, list) and all(
        isinstance(e, dict) and isinstance(e.get("request"), str) and isinstance(e.get("reply"), str) for e in exchanges
    )


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(path)
