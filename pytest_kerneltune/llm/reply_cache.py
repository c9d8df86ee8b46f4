"""Replies kept in a directory, so that a question asked before is answered at once and costs nothing.

One JSON file a request, ``ab/abcd....json`` after the digest of all that decides the answer (address, provider, model,
settings, messages). A file holds the reply, its tokens, the model and the time, nothing of the question and nothing
secret. Rules:

1. Only complete answers are kept: a reply that was cut off is asked for again.
2. A file that cannot be read, or that is none of ours, counts as absent. It is never removed, and overwritten only
   where it bears the very name of an answer to keep. An answer that turns out to be of no use is forgotten.
3. A directory that cannot be written to costs the keeping, never the answer.
4. Files are replaced whole, so processes may share the directory, and it may be deleted at any time. Who may use the
   cache that it is in may use what is made in it. No link is followed.
5. Now and then, when an answer was kept, the longest unused answers go where they all take more than ``STORE_BYTES``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from pytest_kerneltune.disk import permissions, regular, unused
from pytest_kerneltune.llm.answers import is_complete
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.source import DigestingSource, KeptAnswer, Write, ignore
from pytest_kerneltune.llm.storing import read_document, token_count
from pytest_kerneltune.search import Message

MAX_BYTES = 2 << 20
"""A larger file is neither read nor written."""

STORE_BYTES = 64 << 20
"""Of all answers together, about."""

REMARK = "from the reply cache"
_SCHEMA = 1
_LOOKED_AT_EVERY = 256
"""Answers kept between two looks at the whole directory; the first one is looked after, too."""
_FOLDER = re.compile("[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}\.json")


class CachedReplies:
    """The answers of ``source``, kept in ``directory`` and taken from there; ``model`` is said in the files.

    A kept answer is a KeptAnswer. ``limit`` is in bytes.
    """

    def __init__(self, source: DigestingSource, directory: Path, model: str = "", limit: int = STORE_BYTES) -> None:
        self._source, self._directory, self._model, self._limit = source, directory, model, limit
        self._writes = count()

    def close(self) -> None:
        self._source.close()

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        """The kept answer, else the source's; raises what the source raises."""
        digest = self._source.digest(messages)
        path = self._path(digest)
        if (kept := _read(path, digest)) is not None:
            unused.touch(path)
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
        content = (json.dumps(document, indent=1) + "\n").encode()
        if len(content) > MAX_BYTES:
            return
        with suppress(OSError):
            cache = self._directory.parent
            permissions.make_below(path.parent, cache)
            regular.replace(path, content, cache, lasting=False)
            if next(self._writes) % _LOOKED_AT_EVERY == 0:
                self._trim()

    def _trim(self) -> None:
        answers: list[Path] = []
        for folder in self._directory.iterdir():
            if _FOLDER.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                unused.remove_stale(folder)
                with suppress(OSError):
                    answers += (path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        for path in unused.surplus(answers, self._limit):
            if _read(path, path.stem) is not None:
                path.unlink(missing_ok=True)


def _read(path: Path, digest: str) -> KeptAnswer | None:
    try:
        document = read_document(path, MAX_BYTES, follow=False)
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or (document.get("schema"), document.get("request")) != (_SCHEMA, digest):
        return None
    reply = document.get("reply")
    if not isinstance(reply, str) or not reply.strip():
        return None
    return KeptAnswer(reply, token_count(document.get("tokens_in")), token_count(document.get("tokens_out")), REMARK)
