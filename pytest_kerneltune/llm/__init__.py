"""Language models: who answers a search's questions.

``connect`` picks a provider (``providers.py``) or a file of recorded replies (``recorded.py``) and returns a
:class:`LanguageModel`, whose ``submit`` is the port that searches take. Nothing here reads the environment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm.providers import (
    PROVIDERS,
    Answer,
    Provider,
    provider_named,
    provider_of_key,
    provider_of_model,
)
from pytest_kerneltune.search import Message

RECORDED = "recorded"
"""Name of the provider that replays a file."""

_OWN_KEY_VARIABLE = "KERNELTUNE_LLM_API_KEY"
_GRACE_S = 1.0


@dataclass(frozen=True)
class LLMOptions:
    """Which model to ask and how; what is empty is worked out by :func:`connect`.

    ``provider`` is "openai", "anthropic" or "recorded"; ``api_key`` goes to whichever is used, ``provider_keys`` and
    ``provider_bases`` hold keys and addresses by the provider they belong to. ``request_timeout_s`` bounds a request
    with all its retries. Files: ``ca_bundle``, ``client_cert``, ``client_key`` (PEM), ``replies`` (recorded).
    """

    provider: str = ""
    model: str = ""
    api_key: str = field(default="", repr=False)
    api_base: str = field(default="", repr=False)
    provider_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    provider_bases: Mapping[str, str] = field(default_factory=dict, repr=False)
    request_timeout_s: float = 120.0
    max_output_tokens: int = 16_000
    ca_bundle: str | Path = ""
    client_cert: str | Path = ""
    client_key: str | Path = ""
    replies: str | Path = ""

    @classmethod
    def from_settings(cls, given: Mapping[str, Any], variables: Mapping[str, str]) -> Self:
        """Options from the settings that are set, by field name (others are left to whom they concern), and from the
        providers' own environment variables, by variable name."""
        names = {f.name for f in fields(cls)}
        keys = {p.name: variables[p.key_variable] for p in PROVIDERS if variables.get(p.key_variable)}
        bases = {p.name: variables[p.base_variable] for p in PROVIDERS if variables.get(p.base_variable)}
        known = {name: value for name, value in given.items() if name in names}
        return cls(**{"provider_keys": keys, "provider_bases": bases, **known})


@dataclass(frozen=True)
class Call:
    """One request: wall seconds, tokens (None: not said), how it ended in one line, and whether it was answered."""

    seconds: float
    tokens_in: int | None
    tokens_out: int | None
    outcome: str
    answered: bool


class _Source(Protocol):
    """What answers questions: ``http.HttpModel`` or ``recorded.RecordedReplies``."""

    def ask(self, messages: Sequence[Message]) -> Answer: ...
    def close(self) -> None: ...


class LanguageModel:
    """A model to submit questions to. ``label`` says which, ``calls`` is the account of all requests that ended."""

    def __init__(self, label: str, source: _Source, limit_s: float | None = None) -> None:
        """``limit_s`` is a last resort: a request fails this long after it was submitted, whatever ``source`` does."""
        self.label = label
        self.calls: list[Call] = []
        self._source, self._limit_s = source, limit_s
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<LanguageModel {self.label}>"

    def close(self) -> None:
        """Close connections; a request under way fails."""
        self._source.close()

    def submit(self, messages: Sequence[Message]) -> Future[str]:
        """Ask in the background; the future's result is the reply's text, or it raises LLMError."""
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        started = time.monotonic()

        def settle(outcome: Answer | LLMError) -> None:
            with self._lock:
                if not future.done():
                    self._settle(future, outcome, time.monotonic() - started)

        watchdog = self._watchdog(settle)
        # Daemon threads: a request that hangs must not keep the interpreter from exiting.
        threading.Thread(target=self._answer, args=(messages, settle, watchdog), daemon=True).start()
        return future

    def _settle(self, future: Future[str], outcome: Answer | LLMError, seconds: float) -> None:
        if isinstance(outcome, Answer):
            self.calls.append(Call(seconds, outcome.tokens_in, outcome.tokens_out, outcome.remark, True))
            future.set_result(outcome.text)
        else:
            self.calls.append(Call(seconds, None, None, str(outcome), False))
            future.set_exception(outcome)

    def _watchdog(self, settle: Callable[[LLMError], None]) -> threading.Timer | None:
        if self._limit_s is None:
            return None
        late = LLMError(f"{self.label} gave no reply within {self._limit_s:g} s")
        timer = threading.Timer(self._limit_s + _GRACE_S, settle, [late])
        timer.daemon = True
        timer.start()
        return timer

    def _answer(
        self,
        messages: Sequence[Message],
        settle: Callable[[Answer | LLMError], None],
        watchdog: threading.Timer | None,
    ) -> None:
        try:
            outcome: Answer | LLMError = self._source.ask(messages)
        except LLMError as error:
            outcome = error
        except (
            Exception
        ) as error:  # a fault of ours must end the request, not leave the search waiting; may quote a key
            outcome = LLMError(f"{self.label} failed with {type(error).__name__}")
        if watchdog is not None:
            watchdog.cancel()
        settle(outcome)


def connect(options: LLMOptions) -> LanguageModel:
    """The language model that ``options`` describe; nothing is sent yet.

    ``replies`` alone selects recorded replies. Otherwise the provider follows from ``provider``, else from the model's
    name, else from the key, else from which provider's key is set. A key is required unless an address of the user's
    own is given. Raises LLMUnavailable saying in one line what is missing and which variable to set.
    """
    if options.provider == RECORDED or (options.replies and not options.provider):
        return _recorded(options)
    provider = _provider(options)
    from pytest_kerneltune.llm.access import clean_key, endpoint, tls_context
    from pytest_kerneltune.llm.http import HttpModel

    key = clean_key(options.api_key or options.provider_keys.get(provider.name, ""))
    base = options.api_base or options.provider_bases.get(provider.name, "")
    if not key and not base:
        raise LLMUnavailable(f"no key for {provider.name}: set {provider.key_variable} or {_OWN_KEY_VARIABLE}")
    model = options.model or provider.default_model
    source = HttpModel(
        provider,
        model,
        key,
        endpoint(base or provider.base, provider.path, key),
        timeout_s=options.request_timeout_s,
        max_output_tokens=options.max_output_tokens,
        verify=tls_context(options.ca_bundle, options.client_cert, options.client_key),
    )
    return LanguageModel(f"{provider.name} {model}", source, options.request_timeout_s)


def _recorded(options: LLMOptions) -> LanguageModel:
    from pytest_kerneltune.llm.recorded import RecordedReplies

    if not options.replies:
        raise LLMUnavailable("no file of recorded replies is named: set KERNELTUNE_LLM_REPLIES")
    source = RecordedReplies(Path(options.replies))
    return LanguageModel(source.label, source)


def _provider(options: LLMOptions) -> Provider:
    if options.provider:
        provider = provider_named(options.provider)
        if provider is None:
            names = ", ".join([*(p.name for p in PROVIDERS), RECORDED])
            raise LLMUnavailable(f"unknown provider {options.provider!r}; known: {names}")
        return provider
    if options.model and (provider := provider_of_model(options.model)) is not None:
        return provider
    if options.api_key.strip():
        return provider_of_key(options.api_key)
    for row in PROVIDERS:
        if options.provider_keys.get(row.name) or options.provider_bases.get(row.name):
            return row
    if options.api_base:
        return PROVIDERS[0]
    variables = ", ".join(p.key_variable for p in PROVIDERS)
    raise LLMUnavailable(f"no language model is set up: set {variables} or {_OWN_KEY_VARIABLE}")
