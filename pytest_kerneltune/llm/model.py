"""Submitting questions to whatever answers them, and keeping account of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm.access import variable
from pytest_kerneltune.llm.calls import Call
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.source import ForgettingSource, KeptAnswer, Source
from pytest_kerneltune.search.port import Message, StreamedReply

_GRACE_S = 1.0
_SHARE = 0.5  # of a search's time that is left, for one request: what follows it, or takes its place, needs the rest

Record: TypeAlias = Callable[[Sequence[Message], Answer], Answer]
"""Is given an answer and what was asked, and returns the answer."""

Clean: TypeAlias = Callable[[Sequence[Message]], Sequence[Message]]
"""Strikes what is secret out of a question."""

_LIMIT_ADVICE = f"{variable('REQUEST_TIMEOUT_S')} sets the limit"
_BUDGET_ADVICE = "--autotune-budget sets the limit"


class Port:
    """What one search asks a model through; ``until`` is when that search ends (seconds of ``time.monotonic``).

    A request may take half of the time that is left then.

    ``calls`` is the account of those that ended, also after the search did.
    """

    def __init__(self, model: LanguageModel, until: float | None) -> None:
        self.calls: list[Call] = []
        self.until = until
        self._model = model
        self._asked: list[Sequence[Message]] = []

    def __call__(self, messages: Sequence[Message]) -> StreamedReply:
        """Ask in the background; the future's result is the reply's text, or it raises LLMError."""
        messages = self._model.cleaned(messages)
        self._asked.append(messages)
        return self._model.begin(messages, self)

    def forget(self) -> None:
        """Remove what the reply cache holds for its requests, so that the next run asks anew."""
        for messages in self._asked:
            self._model.forget(messages)

    @property
    def pending(self) -> int:
        """How many of its requests are under way."""
        return self._model.under_way(self)


@dataclass(eq=False)
class _Request:
    """A request under way; ``watchdog`` ends it where its source does not."""

    port: Port
    reply: StreamedReply = field(default_factory=StreamedReply)
    started: float = field(default_factory=time.monotonic)
    watchdog: threading.Timer | None = None


class LanguageModel:
    """A model to submit questions to. ``label`` says which, ``calls`` is the account of all requests that ended."""

    def __init__(
        self,
        label: str,
        source: Source,
        limit_s: float | None = None,
        record: Record | None = None,
        clean: Clean | None = None,
    ) -> None:
        """``limit_s`` is a last resort: a request fails this long after it was submitted, whatever ``source`` does.

        ``clean`` is given each question before anything else is, ``record`` each answer before it is handed on.
        """
        self.label = label
        self.calls: list[Call] = []
        self._source, self._limit_s, self._record, self._clean = source, limit_s, record, clean
        self._lock = threading.Lock()
        self._under_way: set[_Request] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<LanguageModel {self.label}>"

    @property
    def pending(self) -> int:
        """How many requests are under way."""
        return len(self._under_way)

    def close(self) -> None:
        """End requests under way, which fail as unanswered, and close connections; later requests fail at once."""
        with self._lock:
            self._closed, left = True, list(self._under_way)
        for request in left:
            self._end(request, LLMError(f"{self.label} had not replied when the run ended"))
        self._source.close()

    def port(self, until: float | None = None) -> Port:
        """What a search asks through; ``until`` is a Port's, None being no such limit."""
        return Port(self, until)

    def submit(self, messages: Sequence[Message]) -> StreamedReply:
        """Ask in the background; the future's result is the reply's text, or it raises LLMError."""
        return self.port()(messages)

    def cleaned(self, messages: Sequence[Message]) -> Sequence[Message]:
        """What is asked where ``messages`` are to be: without what is secret."""
        return messages if self._clean is None else self._clean(messages)

    def forget(self, messages: Sequence[Message]) -> None:
        """Remove what a reply cache holds for ``messages``; does nothing without one, or where that fails."""
        if isinstance(self._source, ForgettingSource):
            with suppress(OSError, ValueError):
                self._source.forget(messages)

    def under_way(self, port: Port) -> int:
        """How many requests of ``port`` are under way."""
        with self._lock:
            return sum(request.port is port for request in self._under_way)

    def begin(self, messages: Sequence[Message], port: Port) -> StreamedReply:
        """As :meth:`submit`, of messages that are clean, on the account of ``port`` too."""
        request, until = _Request(port), port.until
        if until is not None:
            until = request.started + (until - request.started) * _SHARE
        request.reply.set_running_or_notify_cancel()
        with self._lock:
            self._under_way.add(request)
            closed = self._closed
        if closed:
            self._end(request, LLMError(f"{self.label} was not asked: the run has ended"))
        elif until is not None and until <= request.started:
            self._end(request, LLMError(f"{self.label} was not asked: no time is left for a reply; {_BUDGET_ADVICE}"))
        else:
            self._start(request, messages, until)
        return request.reply

    def _start(self, request: _Request, messages: Sequence[Message], until: float | None) -> None:
        # Daemon threads: a request that hangs must not keep the interpreter from exiting.
        try:
            self._set_watchdog(request, until)
            threading.Thread(target=self._answer, args=(request, messages, until), daemon=True).start()
        except RuntimeError:
            self._end(request, LLMError(f"{self.label} was not asked: no thread could be started"))

    def _set_watchdog(self, request: _Request, until: float | None) -> None:
        own_s = math.inf if self._limit_s is None else self._limit_s
        limit_s = own_s if until is None else min(own_s, until - request.started)
        if limit_s < threading.TIMEOUT_MAX - _GRACE_S:
            advice = _LIMIT_ADVICE if limit_s == own_s else _BUDGET_ADVICE
            late = LLMError(f"{self.label} gave no reply within {limit_s:.3g} s; {advice}")
            request.watchdog = threading.Timer(limit_s + _GRACE_S, self._end, [request, late])
            request.watchdog.daemon = True
            request.watchdog.start()

    def _answer(self, request: _Request, messages: Sequence[Message], until: float | None) -> None:
        try:
            outcome: Answer | LLMError = self._source.ask(messages, until, request.reply.write)
        except LLMError as error:
            outcome = error
        except Exception as error:  # it must end the request, not leave the search waiting; its text may quote a key
            outcome = LLMError(f"{self.label} failed with {type(error).__name__}")
        seconds = time.monotonic() - request.started
        if request.watchdog is not None:
            request.watchdog.cancel()
        if isinstance(outcome, Answer):
            outcome = self._recorded(messages, outcome)
        self._end(request, outcome, seconds)

    def _recorded(self, messages: Sequence[Message], answer: Answer) -> Answer:
        try:
            return answer if self._record is None else self._record(messages, answer)
        except Exception as error:  # no fault of the record may cost the answer
            return replace(answer, remark=f"{answer.remark}; not recorded ({type(error).__name__})")

    def _end(self, request: _Request, outcome: Answer | LLMError, seconds: float | None = None) -> None:
        """Hand the outcome on and enter it into the account, unless the request has ended already."""
        with self._lock:
            if request not in self._under_way:
                return
            self._under_way.remove(request)
            call = _call(outcome, time.monotonic() - request.started if seconds is None else seconds)
            self.calls.append(call)
            request.port.calls.append(call)
        if request.watchdog is not None:
            request.watchdog.cancel()
        if isinstance(outcome, Answer):
            request.reply.set_result(outcome.text)
        else:
            # A new one: the frames of the old one hold keys, which pytest may print with the failure of a test.
            kind = LLMUnavailable if isinstance(outcome, LLMUnavailable) else LLMError
            request.reply.set_exception(kind(str(outcome)))


def _call(outcome: Answer | LLMError, seconds: float) -> Call:
    if isinstance(outcome, KeptAnswer):
        return Call(0.0, None, None, outcome.remark, True, cached=True)
    if isinstance(outcome, Answer):
        return Call(seconds, outcome.tokens_in, outcome.tokens_out, outcome.remark, True)
    return Call(seconds, None, None, str(outcome), False)
