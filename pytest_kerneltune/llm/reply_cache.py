"""Replies kept in a directory, so that a question asked before is answered at once and costs nothing.

One JSON file a request, ``ab/abcd....json`` after the digest of all that decides the answer (address, provider, model,
settings, messages). A file holds the reply, its tokens, the model and the time, nothing of the question and nothing
secret. Rules:

1. Only complete answers are kept: a reply that was cut off is asked for again.
2. A file that cannot be read, or that is none of ours, counts as absent. It is never removed, and overwritten only
   where it bears the very name of an answer to keep. An answer that turns out to be of no use is forgotten.
3. A directory that cannot be written to costs the keeping, never the answer.
4. Files are replaced whole, so processes may share the directory, and it may be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pytest_kerneltune.llm.answers import is_complete
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.source import DigestingSource, KeptAnswer, Write, ignore
from pytest_kerneltune.llm.storing import replace_file, token_count
from pytest_kerneltune.search import Message

MAX_BYTES = 2 << 20
"""A larger file is neither read nor written."""

REMARK = "from the reply cache"
_SCHEMA = 1


class CachedReplies:
    """The answers of ``source``, kept in ``directory`` and taken from there; ``model`` is said in the files.

    A kept answer is a KeptAnswer.
    """

    def __init__(self, source: DigestingSource, directory: Path, model: str = "") -> None:
        self._source, self._directory, self._model = source, directory, model

    def close(self) -> None:
        self._source.close()

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        """The kept answer, else the source's; raises what the source raises."""
        digest = self._source.digest(messages)
        path = self._path(digest)
        if (kept := _read(path, digest)) is not None:
            return kept
        answer = self._source.ask(messages, deadline, write)
        if is_complete(answer):
            self._keep(path, digest, answer)
        return answer

    def forget(self, messages: Sequence[Message]) -> None:
        """Remove what is kept for ``messages``; where that fails, it stays."""
        digest = self._source.digest(messages)
        path = self._path(digest)
        if _read(path, digest) is not None:
            with suppress(OSError):
                path.unlink()

    def _path(self, digest: str) -> Path:
        return self._directory / digest[:2] / f"{digest}.json"

    def _keep(self, path: Path, digest: str, answer: Answer) -> None:
        document = {
            "schema": _SCHEMA,
            "request": digest,
            "model": self._model,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "tokens_in": answer.tokens_in,
            "tokens_out": answer.tokens_out,
            "reply": answer.text,
        }
        text = json.dumps(document, indent=1) + "\n"
        if len(text) <= MAX_BYTES:
            with suppress(OSError):
                replace_file(path, text)


def _read(path: Path, digest: str) -> KeptAnswer | None:
    try:
        if not path.is_file():  # a pipe of that name would hold up whoever opens it
            return None
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        document = json.loads(content) if len(content) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or (document.get("schema"), document.get("request")) != (_SCHEMA, digest):
        return None
    reply = document.get("reply")
    if not isinstance(reply, str) or not reply.strip():
        return None
    return KeptAnswer(reply, token_count(document.get("tokens_in")), token_count(document.get("tokens_out")), REMARK)
