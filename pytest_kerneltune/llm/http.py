"""One question to a provider over HTTP, and everything that can go wrong with it.

Rules:

1. One deadline covers all attempts and every byte read. No retry starts whose pause would pass it.
2. Retried: connections that failed or broke, 408, 409, 429 (unless the quota is spent), 5xx and 529, also where a
   provider reports them inside a 200. Never: other 4xx, redirects, TLS failures, refusals, unreadable replies.
3. At most ``MAX_BYTES`` of decoded reply are read.
4. A text from outside reaches an error only through ``_clean``: the key struck out, control characters gone, cut short.
   Exceptions of the HTTP stack may quote the key, so they are read here and never chained.
5. Redirects are not followed: custom headers would carry the key to another host.
6. A server that refuses the schema of structured output is asked once more without, and never again with it.
"""

from __future__ import annotations

import json
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from pytest_kerneltune.errors import LLMError
from pytest_kerneltune.llm.providers import Answer, Body, Provider
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import Request

MAX_BYTES = 8 << 20
_CONNECT_S = 10.0
_RETRIES = 3
_MAX_PAUSE_S = 60.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 8.0
_MAX_TEXT = 300
_SHORTEST_SECRET = 8  # a shorter key guards nothing, and striking it out would garble words
_JITTER = random.Random()
_SPENT = re.compile(r"insufficient_quota|billing|credit balance|quota exceeded", re.IGNORECASE)
_PASSING = re.compile(r"server_error|overload|rate_limit|unavailable|timeout|\b(?:429|5\d\d)\b", re.IGNORECASE)
_ABOUT_FORMAT = re.compile(
    r"format|schema|output_config|structured|\btext\b|unknown|unsupported|unrecogni|extra", re.IGNORECASE
)
_ABOUT_TLS = re.compile(r"certificate|\bssl\b|tlsv1|handshake", re.IGNORECASE)


@dataclass(frozen=True)
class _Fault:
    """Why an attempt failed.

    ``pause_s`` is how long the server asks to wait (None: it does not say), ``about_format`` whether it may have been
    the request for structured output.
    """

    text: str
    retry: bool = False
    pause_s: float | None = None
    about_format: bool = False


class HttpModel:
    """Asks one model of one provider.

    ``url`` is the whole address, ``key`` a clean one or empty (``access.endpoint``, ``access.clean_key``).
    ``timeout_s`` bounds one :meth:`ask` as a whole. ``clock``, ``sleep`` and ``jitter`` (0 to 1) are for tests.
    """

    def __init__(
        self,
        provider: Provider,
        model: str,
        key: str,
        url: str,
        *,
        timeout_s: float,
        max_output_tokens: int,
        verify: ssl.SSLContext,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = _JITTER.random,
    ) -> None:
        self._provider, self._model, self._key, self._url = provider, model, key, url
        self._timeout_s, self._max_output_tokens = timeout_s, max_output_tokens
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._client = httpx.Client(verify=verify, follow_redirects=False)
        self._takes_schema = True

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: Sequence[Message]) -> Answer:
        """The model's answer; raises LLMError with a one-line reason that never holds the key."""
        deadline = self._clock() + self._timeout_s
        attempts = 0
        while True:
            schema = messages.schema if isinstance(messages, Request) and self._takes_schema else None
            outcome = self._attempt(self._body(messages, schema), deadline)
            if isinstance(outcome, Answer):
                return outcome
            if outcome.about_format and schema is not None:
                self._takes_schema = False
                continue
            attempts += 1
            self._sleep(self._pause(outcome, attempts, deadline))

    def _body(self, messages: Sequence[Message], schema: Mapping[str, Any] | None) -> Body:
        body = self._provider.body(messages, self._model, self._max_output_tokens)
        return body if schema is None else body | self._provider.structured(schema)

    def _pause(self, fault: _Fault, attempts: int, deadline: float) -> float:
        """Seconds to wait before the next attempt; raises LLMError where there should be none."""
        if not fault.retry:
            raise LLMError(fault.text)
        if attempts > _RETRIES:
            raise LLMError(f"{fault.text}; tried {attempts} times")
        backoff = min(_FIRST_BACKOFF_S * 2 ** (attempts - 1), _MAX_BACKOFF_S) * (1 - self._jitter() / 4)
        pause = backoff if fault.pause_s is None else fault.pause_s
        if pause > _MAX_PAUSE_S:
            raise LLMError(f"{fault.text}; the server asks to wait {pause:.0f} s, which is too long")
        if self._clock() + pause >= deadline:
            raise LLMError(f"{fault.text}; no time for another attempt within {self._timeout_s:g} s")
        return pause

    def _attempt(self, body: Body, deadline: float) -> Answer | _Fault:
        try:
            outcome = self._exchange(body, deadline)
            if isinstance(outcome, _Fault):
                return outcome
            response, content = outcome
            return self._answer(content, response) if response.is_success else self._refusal(content, response)
        except Exception as error:  # anything the HTTP stack raises may quote the key: only its cleaned text goes on
            return self._broken(error)

    def _exchange(self, body: Body, deadline: float) -> tuple[httpx.Response, bytes] | _Fault:
        left = max(deadline - self._clock(), 0.001)
        headers = {"accept": "application/json", "user-agent": "pytest-kerneltune", **self._provider.headers}
        if self._key:
            headers |= self._provider.sign(self._key)
        limits = httpx.Timeout(left, connect=min(left, _CONNECT_S))
        chunks, size = [], 0
        with self._client.stream("POST", self._url, json=body, headers=headers, timeout=limits) as response:
            # The client's own limits count from read to read; a trickle of bytes would pass them for ever.
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > MAX_BYTES:
                    return self._fault(f"sent more than {MAX_BYTES >> 20} MiB")
                if self._clock() > deadline:
                    return self._too_late()
                chunks.append(chunk)
        return response, b"".join(chunks)

    # What came instead of an answer

    def _broken(self, error: Exception) -> _Fault:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return self._too_late()
        lasting = httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.DecodingError
        if not isinstance(error, httpx.TransportError) or isinstance(error, lasting):
            # What fails on this side of the wire may quote the key, and escaped, where it would not be found.
            return self._fault(f"could not be asked ({type(error).__name__})")
        text = f"could not be asked ({type(error).__name__}: {error})"
        if _ABOUT_TLS.search(str(error)):
            return self._fault(f"{text}; check the CA bundle and the client certificate")
        return self._fault(text, retry=True)

    def _refusal(self, content: bytes, response: httpx.Response) -> _Fault:
        """The fault that a status other than 2xx means."""
        status, text = response.status_code, self._error_text(content, response)
        if response.is_redirect or 300 <= status < 400:
            target = urlsplit(response.headers.get("location", "")).hostname or "another path"
            return self._fault(
                f"redirects to {target} ({status}), which is not followed: set the API base to where it is"
            )
        if status in (401, 403):
            return self._fault(f"refused the key ({status}): {text}")
        spent = status == 429 and _SPENT.search(text)
        retry = not spent and (status in (408, 409, 429) or status >= 500)
        if (wish := response.headers.get("x-should-retry", "")) in ("true", "false"):
            retry = wish == "true"
        fault = self._fault(f"answered {status}: {text}", retry, _retry_after(response.headers))
        return replace(fault, about_format=status in (400, 422) and bool(_ABOUT_FORMAT.search(text)))

    def _answer(self, content: bytes, response: httpx.Response) -> Answer | _Fault:
        payload = _decoded(content)
        if not isinstance(payload, dict):
            kind = response.headers.get("content-type", "no content type")
            what = "nothing" if not content.strip() else f"something that is no reply ({kind})"
            return self._fault(f"sent {what}: check the API base, and for a proxy's or login page")
        if payload.get("error"):
            text = self._error_text(content, response)
            return self._fault(f"reported an error: {text}", retry=bool(_PASSING.search(json.dumps(payload["error"]))))
        try:
            answer = self._provider.read(payload)
        except LLMError as error:
            return _Fault(f"{self._provider.name}: {self._clean(str(error))}")
        return replace(answer, text=self._struck(answer.text), remark=self._clean(answer.remark))

    def _error_text(self, content: bytes, response: httpx.Response) -> str:
        """What an error's body says, in one line."""
        payload = _decoded(content)
        error = payload.get("error", payload) if isinstance(payload, dict) else None
        if isinstance(error, dict):
            named = [str(error[k]) for k in ("type", "code", "param", "message", "detail") if error.get(k)]
            return self._clean(", ".join(dict.fromkeys(named)) or "no reason given")
        if isinstance(error, str):
            return self._clean(error)
        if "html" in response.headers.get("content-type", ""):
            return "a web page"
        return self._clean(content.decode(errors="replace")) or "no reason given"

    def _too_late(self) -> _Fault:
        return self._fault(f"gave no complete reply within {self._timeout_s:g} s")

    def _fault(self, text: str, retry: bool = False, pause_s: float | None = None) -> _Fault:
        return _Fault(f"{self._provider.name} {self._clean(text)}", retry, pause_s)

    def _clean(self, text: str) -> str:
        """``text`` from outside as one short line without the key."""
        line = " ".join("".join(c if c.isprintable() else " " for c in self._struck(text)).split())
        return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + "..."

    def _struck(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text


def _decoded(content: bytes) -> Any:
    """The JSON value; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait: in ms, in seconds, or until a date; as gateways pass it on too."""
    if (in_ms := _seconds(headers.get("retry-after-ms"))) is not None:
        return in_ms / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        if (pause := _seconds(headers.get(name))) is not None:
            return pause
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number >= 0 and not math.isnan(number) else None
