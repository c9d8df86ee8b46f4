"""One question to a provider over HTTP, and everything that can go wrong with it.

Rules:

1. One deadline covers all attempts and every byte. No retry starts whose pause would pass it.
2. ``faults.py`` says what is retried. What was received of a reply that breaks off is the answer, if it is anything.
3. At most ``exchange.MAX_BYTES`` of a reply are read.
4. A text from outside is shown, or raised, only as ``redaction.py`` lets it through. Exceptions of the HTTP stack may
   quote the key, so they are read here and never chained.
5. Redirects are not followed: custom headers would carry the key to another host.
6. A part of the request that a server refuses is replaced or left out, then and ever after (``dialect.py``).
"""

from __future__ import annotations

import json
import math
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

import httpx

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm.access import variable
from pytest_kerneltune.llm.answers import ENDLESS, Answer, as_object, cut_off, reported_error, tokens
from pytest_kerneltune.llm.client import client
from pytest_kerneltune.llm.dialect import Dialect
from pytest_kerneltune.llm.exchange import ENCODING, MAX_BYTES, Alarm, Enough, TooLarge, unpacked
from pytest_kerneltune.llm.faults import Fault, Faults
from pytest_kerneltune.llm.providers import Ask, Body, Provider
from pytest_kerneltune.llm.quiet import unlogged
from pytest_kerneltune.llm.redaction import RedactedPieces, Redaction, secrets_of
from pytest_kerneltune.llm.source import Write, ignore
from pytest_kerneltune.llm.streams import ReplyStream
from pytest_kerneltune.search import Message

_CONNECT_S = 10.0
_RETRIES = 3
_MAX_PAUSE_S = 60.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 8.0
_LONGEST_S = 1e6  # what a socket and a timer can take
_CREDENTIALS = {"authorization", "x-api-key", "api-key"}
_AGENT, _ACCEPTED = "pytest-kerneltune", "application/json, text/event-stream, application/x-ndjson"
_MAX_MIB = MAX_BYTES >> 20
_JITTER = random.Random()


class _Limit(NamedTuple):
    """When a question has to be answered (of the model's clock), how many seconds that was from its start, and whether
    it is the model's own timeout."""

    deadline: float
    seconds: float
    own: bool


class HttpModel:
    """Asks one model of one provider, from several threads at once.

    ``url`` is the whole address, ``key`` a clean one or empty, ``headers`` go with each request; with a credential
    among them the key is not sent (``access.endpoint``, ``access.clean_key``, ``access.clean_headers``). ``timeout_s``
    bounds one :meth:`ask` as a whole. ``clock``, ``sleep`` and ``jitter`` (0 to 1) are for tests. Raises LLMUnavailable
    where the environment's proxies are no good.
    """

    def __init__(
        self,
        provider: Provider,
        ask: Ask,
        key: str,
        url: str,
        *,
        timeout_s: float,
        verify: ssl.SSLContext,
        headers: Mapping[str, str] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = _JITTER.random,
    ) -> None:
        self._provider, self._url, self._dialect = provider, url, Dialect(provider.format, ask)
        self._label = f"{provider.name} {ask.model}"
        self._timeout_s, self._clock, self._sleep, self._jitter = timeout_s, clock, sleep, jitter
        self._redaction = Redaction(secrets_of(key, headers, url))
        signed = not _CREDENTIALS.isdisjoint(map(str.lower, headers))
        self._headers = _headers(provider, "" if signed else key, headers)
        self._faults = Faults(provider.name, provider.key_variable, url, bool(key) or signed, self._redaction)
        self._client = client(verify, url)

    def __repr__(self) -> str:
        return f"<HttpModel {self._label}>"

    def close(self) -> None:
        """Close connections; a request under way fails."""
        self._client.close()

    def digest(self, messages: Sequence[Message]) -> str:
        """SHA-256 (hex) of all that decides the answer: address, provider and body; no key, no header."""
        deciding = [self._provider.name, self._url, self._dialect.deciding(messages)]
        return sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        """The model's answer, by ``deadline`` (of ``clock``) at the latest; ``write`` gets its pieces as they arrive.

        Raises LLMError with a one-line reason that never holds a secret.
        """
        started, attempts = self._clock(), 0
        deadline = min(started + self._timeout_s, math.inf if deadline is None else deadline)
        limit = _Limit(deadline, deadline - started, deadline == started + self._timeout_s)
        while True:
            draft = self._dialect.draft(messages)
            with unlogged():
                outcome = self._attempt(draft.body, limit, write)
            if isinstance(outcome, Answer):
                return replace(outcome, remark=outcome.remark + self._dialect.news())
            if not self._dialect.learn(draft, outcome.complaint):
                attempts += 1
                self._sleep(self._pause(outcome, attempts, limit))

    def _pause(self, fault: Fault, attempts: int, limit: _Limit) -> float:
        """Seconds to wait before the next attempt; raises LLMError where there should be none."""
        backoff = min(_FIRST_BACKOFF_S * 2 ** (attempts - 1), _MAX_BACKOFF_S) * (1 - self._jitter() / 4)
        pause, why_not = backoff if fault.pause_s is None else fault.pause_s, ""
        if fault.retry and attempts > _RETRIES:
            why_not = f"; tried {attempts} times"
        elif fault.retry and pause > _MAX_PAUSE_S:
            why_not = f"; the server asks to wait {pause:.0f} s, which is too long"
        elif fault.retry and self._clock() + pause >= limit.deadline:
            why_not = f"; no time for another attempt within {limit.seconds:.3g} s"
        if why_not or not fault.retry:
            raise LLMError(self._redaction.line(fault.text + why_not))
        return pause

    def _attempt(self, body: Body, limit: _Limit, write: Write) -> Answer | Fault:
        left_s = min(limit.deadline - self._clock(), _LONGEST_S)
        late = self._late(limit)
        if left_s <= 0:
            return late
        reply, fault, response = ReplyStream(self._provider.format.merge), None, None
        pieces = RedactedPieces(self._redaction, write)
        with Alarm(left_s) as alarm:
            try:
                response = self._exchange(body, left_s, alarm, reply, pieces)
            except Enough:
                return self._so_far(reply, ENDLESS)
            except TooLarge:
                fault = self._faults.made(f"sent more than {_MAX_MIB} MiB", cut=f"more than {_MAX_MIB} MiB")
            except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout):
                fault = late
            except Exception as error:  # anything of the HTTP stack may quote the key: only its cleaned text goes on
                fault = self._faults.of_exception(error, alarm.reached)
        pieces.end()
        return self._outcome(response, reply, late if alarm.rung else fault)

    def _late(self, limit: _Limit) -> Fault:
        advice = f"{variable('REQUEST_TIMEOUT_S') if limit.own else '--autotune-budget'} sets the limit"
        text = f"gave no complete reply within {max(limit.seconds, 0):.3g} s"
        return self._faults.made(text, advice, cut="out of time", cut_advice=advice)

    def _exchange(
        self, body: Body, left_s: float, alarm: Alarm, reply: ReplyStream, pieces: RedactedPieces
    ) -> httpx.Response:
        limits = httpx.Timeout(left_s, connect=min(left_s, _CONNECT_S))
        with self._client.stream(
            "POST",
            self._url,
            content=json.dumps(body).encode(),
            headers=self._headers,
            timeout=limits,
            extensions={"trace": alarm.trace},
        ) as response:
            for chunk in unpacked(response):
                if not response.is_success:
                    reply.content += chunk
                    continue
                pieces.take(reply.feed(chunk))
                if reply.over:
                    return response
                if not pieces.wanted:
                    raise Enough
            pieces.take(reply.finish())
        return response

    def _outcome(self, response: httpx.Response | None, reply: ReplyStream, fault: Fault | None) -> Answer | Fault:
        """What became of an attempt; without ``response``, ``fault`` says why it has no end."""
        if response is not None and fault is None and not response.is_success:
            return self._faults.of_status(response, bytes(reply.content))
        body = reply.whole
        payload = body if isinstance(body, dict) else {}
        if error := reported_error(payload):
            fault = self._faults.of_report(error)
        elif reply.broken:
            fault = fault or self._faults.made("broke off before it wrote an answer", retry=True)
        elif reply.is_stream:
            fault = None  # all is there, whatever came after it
        if fault is not None:
            return self._so_far(reply, cut_off(fault.cut, fault.cut_advice)) if reply.text.strip() else fault
        if response is not None and not isinstance(body, dict):
            return self._faults.of_unreadable(response, bytes(reply.content))
        return self._answer(payload)

    def _so_far(self, reply: ReplyStream, remark: str) -> Answer:
        return Answer(self._redaction.reply(reply.text), *tokens(as_object(reply.whole).get("usage")), remark)

    def _answer(self, payload: Body) -> Answer | Fault:
        try:
            answer = self._provider.format.read(payload)
        except LLMError as error:
            return self._faults.without_answer(str(error))
        return replace(answer, text=self._redaction.reply(answer.text), remark=self._redaction.line(answer.remark))


def _headers(provider: Provider, key: str, extra: Mapping[str, str]) -> dict[str, str]:
    """By name in lower case, so that what comes later replaces what came earlier."""
    stated = {"content-type": "application/json", "accept": _ACCEPTED, "user-agent": _AGENT}
    sources = (stated, provider.headers, provider.sign(key) if key else {}, extra, {"accept-encoding": ENCODING})
    return {name.lower(): value for source in sources for name, value in source.items()}
