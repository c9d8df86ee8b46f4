"""From options to a language model: which provider it is, and all that stands between it and the search.

Nothing here reads the environment; messages name the variables that a user sets. Whatever fails is raised anew, without
the frames in which keys are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pytest_kerneltune.errors import LLMUnavailable
from pytest_kerneltune.llm.access import clean_headers, clean_key, endpoint, tls_context, variable
from pytest_kerneltune.llm.model import LanguageModel, Record
from pytest_kerneltune.llm.providers import (
    PROVIDERS,
    Ask,
    Provider,
    provider_named,
    provider_of_key,
    provider_of_model,
)
from pytest_kerneltune.llm.redaction import Redaction, secrets_of
from pytest_kerneltune.llm.source import DigestingSource, Source

RECORDED = "recorded"
"""Name of the provider that replays a file."""

COMPATIBLE = "chat"
"""Name of the provider that an address alone means: a server of the user's own that speaks what most of them speak."""


@dataclass(frozen=True)
class LLMOptions:
    """Which model to ask and how; what is empty is worked out by :func:`connect`.

    ``provider`` is a row's name or "recorded"; ``api_key`` goes to whichever is used, ``provider_keys`` and
    ``provider_bases`` hold keys and addresses by the provider they belong to. ``extra_headers`` is what
    ``access.clean_headers`` takes, ``allow_http`` names the hosts that may get a key unencrypted. ``request_timeout_s``
    bounds a request with all its retries. ``temperature``, ``reasoning_effort``, ``max_output_tokens`` and ``stream``
    are those of ``providers.Ask``.

    Files: ``ca_bundle``, ``client_cert``, ``client_key`` (PEM, with ``client_key_password``), ``replies`` (replayed),
    ``record`` (every answer is added to it; what is replayed is not). ``reply_cache`` is the directory of
    ``reply_cache.CachedReplies``; without one nothing is kept.
    """

    provider: str = ""
    model: str = ""
    api_key: str = field(default="", repr=False)
    api_base: str = field(default="", repr=False)
    provider_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    provider_bases: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_headers: str = field(default="", repr=False)
    allow_http: tuple[str, ...] = ()
    request_timeout_s: float = 120.0
    temperature: float | None = Ask.temperature
    reasoning_effort: str = Ask.effort
    max_output_tokens: int = Ask.max_output_tokens
    stream: bool = Ask.stream
    ca_bundle: str | Path = ""
    client_cert: str | Path = ""
    client_key: str | Path = ""
    client_key_password: str = field(default="", repr=False)
    replies: str | Path = ""
    record: str | Path = ""
    reply_cache: str | Path = ""

    @classmethod
    def from_settings(
        cls, given: Mapping[str, Any], variables: Mapping[str, str], reply_cache: str | Path = ""
    ) -> Self:
        """Options from the settings that are set, by field name (others are left to whom they concern), and from the
        providers' own environment variables, by variable name."""
        names = {f.name for f in fields(cls)}
        keys = {p.name: variables[p.key_variable] for p in PROVIDERS if variables.get(p.key_variable)}
        bases = {p.name: variables[p.base_variable] for p in PROVIDERS if variables.get(p.base_variable)}
        known = {name: value for name, value in given.items() if name in names}
        return cls(**{"provider_keys": keys, "provider_bases": bases, **known, "reply_cache": reply_cache})


def connect(options: LLMOptions) -> LanguageModel:
    """The language model that ``options`` describe; nothing is sent yet.

    Without a ``provider``, ``replies`` are replayed, unless there is something to ``record``: then a model is asked
    anew. Its provider follows from the model's name, else from the key, else from which provider's key or address is
    set; an address alone means "chat". Where a provider needs a key, an address of the user's own does without. Raises
    LLMUnavailable saying in one line what is missing or wrong, and which variable to set.
    """
    try:
        return _connected(options)
    except LLMUnavailable as error:
        reason = str(error)
    except ImportError as error:
        reason = f"the language model could not be set up: {error}"
    except Exception as error:  # its text may quote a key
        reason = f"the language model could not be set up ({type(error).__name__})"
    raise LLMUnavailable(reason)


def _connected(options: LLMOptions) -> LanguageModel:
    if _is_recorded(options):
        return _replaying(options)
    provider = _provider(options)
    model = options.model or provider.default_model
    if not model:
        raise LLMUnavailable(f"no model is named for {provider.name}: set {variable('MODEL')}")
    label = f"{provider.name} {model}"
    record = _record(options.record, label)
    source: Source = (http := _source(options, provider, model))
    if options.reply_cache:
        from pytest_kerneltune.llm.reply_cache import CachedReplies

        source = CachedReplies(http, Path(options.reply_cache), label)
    return LanguageModel(label, source, options.request_timeout_s, record, _redaction(options).messages)


# Recorded replies


def _is_recorded(options: LLMOptions) -> bool:
    if options.provider:
        return options.provider.strip().lower() == RECORDED
    return bool(options.replies and not options.record)


def _replaying(options: LLMOptions) -> LanguageModel:
    from pytest_kerneltune.llm.recorded import RecordedReplies

    if not options.replies:
        raise LLMUnavailable(f"no file of recorded replies is named: set {variable('REPLIES')}")
    source = RecordedReplies(Path(options.replies))
    return LanguageModel(source.label, source, clean=_redaction(options).messages)


def _record(path: str | Path, label: str) -> Record | None:
    if not path:
        return None
    from pytest_kerneltune.llm.recording import Recorder

    return Recorder(Path(path), label).record


# Secrets


def _redaction(options: LLMOptions) -> Redaction:
    """Of all that is secret, also of other providers: a prompt may show it."""
    headers: Mapping[str, str] = {}
    with suppress(LLMUnavailable):  # said where they are used
        headers = clean_headers(options.extra_headers)
    keys = [key.strip() for key in (options.api_key, *options.provider_keys.values())]
    bases = [options.api_base, *options.provider_bases.values()]
    secrets = {secret for key in keys for base in bases for secret in secrets_of(key, headers, base)}
    return Redaction([*secrets, options.client_key_password])


# Over HTTP


def _source(options: LLMOptions, provider: Provider, model: str) -> DigestingSource:
    from pytest_kerneltune.llm.http import HttpModel

    # Another provider's key does not go to a server of the user's own unasked.
    is_own = provider.name == COMPATIBLE and options.api_base
    key = clean_key(options.api_key or ("" if is_own else options.provider_keys.get(provider.name, "")))
    own_base = options.api_base or options.provider_bases.get(provider.name, "")
    if provider.key_required and not key and not own_base:
        raise LLMUnavailable(f"no key for {provider.name}: set {provider.key_variable} or {variable('API_KEY')}")
    secret = key or options.extra_headers.strip()
    return HttpModel(
        provider,
        Ask(model, options.max_output_tokens, options.temperature, options.reasoning_effort, options.stream),
        key,
        endpoint(provider.address(own_base or provider.base), provider.path, secret, options.allow_http),
        timeout_s=options.request_timeout_s,
        verify=tls_context(options.ca_bundle, options.client_cert, options.client_key, options.client_key_password),
        headers=clean_headers(options.extra_headers),
    )


def _provider(options: LLMOptions) -> Provider:
    if options.provider:
        provider = provider_named(options.provider)
        if provider is None:
            names = ", ".join([*(p.name for p in PROVIDERS), RECORDED])
            raise LLMUnavailable(f"unknown provider {options.provider!r}: set {variable('PROVIDER')} to one of {names}")
        return provider
    if (provider := next(_suggested(options), None)) is not None:
        return provider
    keys = ", ".join(dict.fromkeys(p.key_variable for p in PROVIDERS if p.key_required))
    raise LLMUnavailable(
        f"no language model is set up: set {keys} or {variable('API_KEY')}, "
        f"or {variable('API_BASE')} for a server of your own"
    )


def _suggested(options: LLMOptions) -> Iterator[Provider]:
    """The providers that what is set speaks for, the strongest hint first."""
    key = options.api_key.strip()
    keys = [key, *options.provider_keys.values()]
    if options.model and (provider := provider_of_model(options.model, keys)) is not None:
        yield provider
    if key and key.startswith((of_key := provider_of_key(key)).key_prefix):
        yield of_key
    if options.model and options.api_base:  # neither speaks for a known provider: nor should a key of one go there
        yield from filter(None, [provider_named(COMPATIBLE)])
    for known in (options.provider_keys, options.provider_bases):
        yield from (row for row in PROVIDERS if known.get(row.name))
    if options.api_base and (compatible := provider_named(COMPATIBLE)) is not None:
        yield compatible
    if key:
        yield PROVIDERS[0]
