"""What went wrong with a request, in a line: whose fault, why, what to do, and whether to ask again.

Asked again is after connections that failed or broke, 408, 409, 429 (unless the quota is spent), 5xx and 529, also
where a provider reports them inside a 200. Never after other 4xx, redirects, TLS failures, unreadable replies.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from pytest_kerneltune.llm.access import is_loopback, variable
from pytest_kerneltune.llm.bodies import STREAM
from pytest_kerneltune.llm.client import LOCATION, PROXY_VARIABLES, proxies
from pytest_kerneltune.llm.redaction import MAX_LINE, Redaction
from pytest_kerneltune.llm.streams import decoded

_MAX_QUOTE = 200
_MAX_DETAILS = 8
_ROOM_FOR_MORE = 60  # for what is said of attempts
_SPENT = re.compile(r"insufficient_quota|billing|credit balance|insufficient credit|quota exceeded", re.IGNORECASE)
_PASSING = re.compile(r"server_error|overload|rate_limit|unavailable|time.?out|\b(?:429|5\d\d)\b", re.IGNORECASE)
_ABOUT_TLS = re.compile(r"certificate|\bssl\b|tlsv1|handshake", re.IGNORECASE)
_WE_OBJECT = re.compile(r"verify failed", re.IGNORECASE)
_NO_SUCH_MODEL = re.compile(r"(invalid|unknown|no such) model|model\b.{0,60}not (exist|found)", re.IGNORECASE)
_NO_SUCH_HOST = re.compile(r"not known|no address associated|nodename", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context.{0,12}(length|window|size)|(prompt|input|request).{0,20}too (long|large)|too many (input )?tokens",
    re.IGNORECASE,
)
_FLOOD = re.compile("too (long|large|many)", re.IGNORECASE)
_OURS = httpx.UnsupportedProtocol | httpx.LocalProtocolError


@dataclass(frozen=True)
class Fault:
    """Why an attempt failed.

    ``pause_s`` is how long the server asks to wait (None: it does not say). ``complaint`` is what a server said that
    may refuse a field of the request. ``cut`` says in a few words why a reply under way ended, ``cut_advice`` what to
    do about it.
    """

    text: str
    retry: bool = False
    pause_s: float | None = None
    complaint: str = ""
    cut: str = "connection lost"
    cut_advice: str = ""


class Faults:
    """Makes faults of what happens with one provider at one address.

    ``credentials`` says whether a key is sent.
    """

    def __init__(self, name: str, key_variable: str, url: str, credentials: bool, redaction: Redaction) -> None:
        self._name, self._credentials, self._redaction = name, credentials, redaction
        self._keys = " or ".join(filter(None, [key_variable, variable("API_KEY")]))
        self._url, self._proxies = urlsplit(url), proxies(url)

    def made(
        self, text: str, advice: str = "", *, retry: bool = False, cut: str = "connection lost", cut_advice: str = ""
    ) -> Fault:
        """A fault of the provider's: "NAME TEXT; ADVICE"."""
        return Fault(self._text(text, advice), retry, cut=cut, cut_advice=cut_advice)

    def of_exception(self, error: Exception, reached: tuple[str, int] = ("", 0)) -> Fault:
        """What the HTTP stack raised; its text may quote the key, so it goes no further than this.

        ``reached`` is the host and port that was connected to, or tried.
        """
        kind = type(error).__name__
        if isinstance(error, httpx.DecodingError | zlib.error):
            return self.made("sent a reply that is packed in another way than asked for")
        if not isinstance(error, httpx.TransportError) or isinstance(error, _OURS):
            # What fails on this side of the wire may quote the key, and escaped, where it would not be found.
            return self.made(f"could not be asked ({kind})")
        told = re.sub(r"\[SSL[^]]*\] ?| ?\(_ssl\.c:\d+\)", "", str(error))
        text = f"could not be asked ({kind}: {self._quoted(told)})"
        if _ABOUT_TLS.search(str(error)):
            return self.made(text, self._tls_advice(str(error)))
        proxy = self._proxies.get(reached, "")
        if isinstance(error, httpx.ProxyError):
            return self.made(text, _proxy_advice(proxy), retry=bool(_PASSING.search(str(error))))
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            advice = _proxy_advice(proxy) if proxy else self._connection_advice()
            return self.made(text, advice, retry=not _NO_SUCH_HOST.search(str(error)))
        if isinstance(error, httpx.RemoteProtocolError) and _FLOOD.search(str(error)):
            return self.made("sent headers that are too long to be read", f"check {variable('API_BASE')}")
        return self.made(text, retry=True)

    def of_status(self, response: httpx.Response, content: bytes) -> Fault:
        """A status other than 2xx."""
        status = response.status_code
        if 300 <= status < 400:
            return self._redirect(response)
        complaint = ", ".join(_words(_error_body(content))) or self._of_text(response, content)
        text = self._quoted(complaint)
        spent = status == 429 and _SPENT.search(complaint)
        retry = not spent and (status in (408, 409, 429) or status >= 500)
        if not spent and (wish := response.headers.get("x-should-retry", "")) in ("true", "false"):
            retry = wish == "true"
        said, advice = self._status_words(status, text, bool(spent))
        return Fault(self._text(said, advice), retry, retry_after(response.headers), _refusal(status, complaint))

    def of_report(self, error: Any) -> Fault:
        """An error that a provider reports with a good status, or within a stream."""
        said = ", ".join(_words(error)) or "no reason given"
        passing = _PASSING.search(json.dumps(error)) and not _SPENT.search(said)
        advice = _ROOM_ADVICE if _TOO_LONG.search(said) else ""
        text = self._text(f"reported an error: {self._quoted(said)}", advice)
        return Fault(text, bool(passing), complaint=_refusal(500, said), cut=self._quoted(said, 80))

    def of_unreadable(self, response: httpx.Response, content: bytes) -> Fault:
        """A good status with a body that is no reply."""
        kind = response.headers.get("content-type", "no content type")
        what = "nothing" if not content.strip() else f"something that is no reply ({self._quoted(kind)})"
        return self.made(f"sent {what}", f"check {variable('API_BASE')}, and for a proxy's or login page")

    def without_answer(self, reason: str) -> Fault:
        """A reply that holds no answer."""
        spent = "spent its output tokens" in reason
        advice = f"; raise {variable('MAX_OUTPUT_TOKENS')} or lower {variable('REASONING_EFFORT')}" if spent else ""
        return Fault(self._redaction.line(f"{self._name}: {self._quoted(reason)}{advice}"))

    def _redirect(self, response: httpx.Response) -> Fault:
        target = re.sub(r"^(\w+:)?//([^/?#]*@)?([^/?#]*).*|.*", r"\3", response.extensions.get(LOCATION, ""), count=1)
        text = f"redirects to {self._quoted(target) or 'another path'} ({response.status_code}), which is not followed"
        return self.made(text, f"set {variable('API_BASE')} to where it is")

    def _status_words(self, status: int, text: str, spent: bool) -> tuple[str, str]:
        """What is said of a status, and what to do about it."""
        if status == 401:
            said = "refused the key" if self._credentials else "wants a key"
            return f"{said} (401): {text}", f"check {self._keys}"
        if status == 403:
            return f"refused access (403): {text}", f"check what the key allows ({self._keys})"
        if status == 404:
            what = f"check {variable('MODEL')}, and that {variable('API_BASE')} serves {self._url.path}"
            return f"answered 404: {text}", what
        advice = ""
        if spent or status == 402:
            advice = "the account's quota or credit is spent"
        elif status == 413 or (status < 500 and _TOO_LONG.search(text)):
            advice = _ROOM_ADVICE
        elif status == 429:
            advice = "try again later"
        elif status == 400 and _ABOUT_TLS.search(text):
            advice = self._tls_advice(text)
        elif status == 400 and _NO_SUCH_MODEL.search(text):
            advice = f"check {variable('MODEL')}"
        return f"answered {status}: {text}", advice

    def _tls_advice(self, text: str) -> str:
        if "wrong version" in text.lower().replace("_", " "):
            return f"the server does not speak TLS: check {variable('API_BASE')} for https"
        if "mismatch" in text.lower():
            return f"the certificate is another host's: check {variable('API_BASE')}"
        if "expired" in text.lower():
            return "one of the two certificates is out of date"
        if _WE_OBJECT.search(text):
            return f"name the authority that vouches for the server in {variable('CA_BUNDLE')}"
        return f"it may want a certificate: check {variable('CLIENT_CERT')} and {variable('CLIENT_KEY')}"

    def _connection_advice(self) -> str:
        host = self._url.hostname or ""
        if is_loopback(host):
            return f"is the server running at {self._url.netloc}?"
        return f"check {variable('API_BASE')} ({self._url.netloc}), the network and proxies"

    def _of_text(self, response: httpx.Response, content: bytes) -> str:
        text = content.decode(errors="replace").strip()
        if "html" not in response.headers.get("content-type", ""):
            return text or "no reason given"
        title = re.search(r"<title>([^<]*)", text)
        return f"a web page ({html.unescape(title[1])})" if title else "a web page"

    def _quoted(self, text: str, limit: int = _MAX_QUOTE) -> str:
        return self._redaction.line(text, limit)

    def _text(self, text: str, advice: str = "") -> str:
        advice = f"; {advice}" if advice else ""
        return self._redaction.line(f"{self._name} {text}", MAX_LINE - _ROOM_FOR_MORE - len(advice)) + advice


_ROOM_ADVICE = f"set {variable('SEND_SOURCE')}=0, or ask a model with a longer context"


def _proxy_advice(proxy: str) -> str:
    return f"check the proxy{f' {proxy}' if proxy else ''} ({PROXY_VARIABLES})"


def _error_body(content: bytes) -> Any:
    """The JSON of an error; of one that comes as a stream, that of its first event."""
    event = re.search(rb"^data: *(\{.*)", content, re.MULTILINE)
    return decoded(event[1] if event else content)


def _refusal(status: int, complaint: str) -> str:
    """What of an error may mean that a server does not take all of a request's fields."""
    if status >= 500:  # servers that cannot stream some formats fail at it
        return STREAM if STREAM in complaint.lower() else ""
    # OpenRouter answers 404 where no server takes all fields.
    return complaint if status in (400, 422) or (status == 404 and "parameters" in complaint) else ""


_TELLING = ("type", "code", "param", "loc", "message", "msg", "detail", "errors", "error")


def _words(error: Any, depth: int = 4) -> Iterator[str]:
    """What an error's body says, each thing once."""
    if isinstance(error, str | int | float):
        yield str(error)
    elif isinstance(error, dict) and depth:
        if isinstance(error.get("error"), dict | str):  # around it is nothing of interest
            yield from _words(error["error"], depth - 1)
            return
        found = (word for name in _TELLING if error.get(name) for word in _words(error[name], depth - 1))
        yield from dict.fromkeys(found)
    elif isinstance(error, list) and depth:
        if all(isinstance(item, str | int) for item in error):
            yield ".".join(map(str, error))
        else:
            for item in error[:_MAX_DETAILS]:
                yield from _words(item, depth - 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: in ms, in seconds, or until a date; as gateways pass it on, too."""
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
