"""Writing what was asked and answered to a file that ``recorded.py`` replays.

Rules:

1. Whoever adds an exchange holds the lease of the file (``disk/leases.py``) and replaces the file whole. So processes
   may record into one file at once, and a killed one leaves behind what was recorded up to then.
2. An exchange takes the place of an earlier one to the same request; all others stay.
3. A file that is none of ours is never written to: it stays as it is, and what to do is said.
4. Recorded are messages, reply, model, kernel, tokens and why a reply ended early, nothing else; and only what was
   answered.
5. An answer that cannot be recorded is one all the same; why it cannot is said once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_kerneltune.disk import leases, strictjson
from pytest_kerneltune.errors import LLMError, LLMUnavailable, StoreError
from pytest_kerneltune.llm.answers import is_complete
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.recorded import SCHEMA, load, request_id
from pytest_kerneltune.llm.storing import replace_file
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import kernel_name

_WAIT_S = 2 * leases.LEASE_S  # for many others to write a large file, or for one that hangs to be replaced
_WAY_OUT = "it is left as it is: name another file, or move this one away"


class Recorder:
    """Records the answers of a model called ``model`` in the file ``path``, which is made where it does not exist.

    Raises LLMUnavailable where the file cannot be written to.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self._complaints: set[str] = set()
        try:
            _prepare(path)
        except LLMError as error:
            raise LLMUnavailable(f"no reply can be recorded: {error}") from None

    def record(self, messages: Sequence[Message], answer: Answer) -> Answer:
        """``answer``, recorded; where that fails its remark says why, the first time."""
        spent = answer.tokens_in, answer.tokens_out
        try:
            remark = "" if is_complete(answer) else answer.remark
            add_exchange(self._path, messages, answer.text, self._model, tokens=spent, remark=remark)
        except LLMError as error:
            if (complaint := str(error)) not in self._complaints:
                self._complaints.add(complaint)
                return replace(answer, remark=f"{answer.remark}; not recorded: {complaint}")
        return answer


def add_exchange(
    path: str | os.PathLike[str],
    messages: Sequence[Message],
    reply: str,
    model: str,
    kernel: str = "",
    tokens: tuple[int | None, int | None] = (None, None),
    remark: str = "",
) -> str:
    """Record a reply in the file ``path``, in place of an earlier one to the same request; returns its id.

    ``kernel`` is the one that the messages name, unless given; ``tokens`` are those in and out, ``remark`` says why
    the reply ended early, if it did. The file is made where it does not exist. Raises LLMError where it cannot be
    written to or is none of ours.
    """
    file, digest = Path(path), request_id(messages)
    exchange = {
        "request": digest,
        "model": model,
        "kernel": kernel or kernel_name(messages),
        **{name: n for name, n in zip(("tokens_in", "tokens_out"), tokens, strict=True) if n is not None},
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "reply": reply,
        **({"remark": remark} if remark else {}),
    }
    with _locked(file):
        document = _document(file)
        document["exchanges"] = [*(e for e in document["exchanges"] if e["request"] != digest), exchange]
        _write(file, document)
    return digest


def _prepare(path: Path) -> None:
    """Make the file where it does not exist; raises LLMError where it cannot be made or changed."""
    with _locked(path):
        document = _document(path)
        if not path.exists():
            _write(path, document)
        elif not (os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)):
            raise LLMError(f"{_called(path)} is read-only")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file, which need not exist; raises LLMError where that cannot be had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = leases.take(path, timeout_s=_WAIT_S)
    except (OSError, StoreError) as error:
        raise _failed(path, error) from None
    with lease:
        yield


def _document(path: Path) -> dict[str, Any]:
    return load(path, _called(path), _WAY_OUT) if path.exists() else {"schema": SCHEMA, "exchanges": []}


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1) + "\n"
    if len(text) > strictjson.MAX_BYTES:
        raise LLMError(f"{_called(path)} would be larger than {strictjson.MAX_BYTES >> 20} MiB; name another file")
    try:
        replace_file(path, text)
    except OSError as error:
        raise _failed(path, error) from None


def _failed(path: Path, error: OSError | StoreError) -> LLMError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return LLMError(f"{_called(path)} cannot be written to: {reason}")


def _called(path: Path) -> str:
    return f"the file {path} (KERNELTUNE_LLM_RECORD)"
