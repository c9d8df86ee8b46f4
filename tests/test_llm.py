"""Choosing a model, submitting to it, and the account of calls."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm import LanguageModel, LLMOptions, connect
from pytest_kerneltune.llm.access import clean_key, endpoint, tls_context
from pytest_kerneltune.llm.providers import PROVIDERS, Answer
from pytest_kerneltune.search import Message

HELLO = [Message("user", "Hello.")]
SECRET = "sk-very-secret"


class Source:
    """Answers with what it was given; an exception is raised, an event waited for."""

    def __init__(self, outcome: Answer | Exception | threading.Event) -> None:
        self.outcome = outcome
        self.closed = False

    def ask(self, messages: Sequence[Message]) -> Answer:
        if isinstance(self.outcome, threading.Event):
            self.outcome.wait(10)
            return Answer("too late")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.closed = True


def test_an_answer_comes_through_the_future_and_into_the_account() -> None:
    source = Source(Answer("text", 70, 30, "cut off (length)"))
    model = LanguageModel("m", source, limit_s=30)
    assert model.submit(HELLO).result(5) == "text"
    (call,) = model.calls
    assert (call.tokens_in, call.tokens_out, call.outcome) == (70, 30, "cut off (length)")
    assert 0 <= call.seconds < 5
    model.close()
    assert source.closed


def test_an_error_comes_through_the_future_and_into_the_account() -> None:
    model = LanguageModel("m", Source(LLMError("no credit")))
    with pytest.raises(LLMError, match="no credit"):
        model.submit(HELLO).result(5)
    assert [c.outcome for c in model.calls] == ["no credit"]


def test_an_unexpected_exception_fails_the_request_without_its_text() -> None:
    model = LanguageModel("m", Source(ValueError(f"bad {SECRET}")))
    with pytest.raises(LLMError) as failure:
        model.submit(HELLO).result(5)
    assert str(failure.value) == "m failed with ValueError"


def test_a_request_that_hangs_fails_at_the_limit_and_blocks_nothing() -> None:
    release, before = threading.Event(), set(threading.enumerate())
    model = LanguageModel("m", Source(release), limit_s=-0.9)
    future = model.submit(HELLO)
    assert all(t.daemon for t in set(threading.enumerate()) - before)
    with pytest.raises(LLMError, match="m gave no reply within"):
        future.result(5)
    release.set()
    assert [c.outcome for c in model.calls] == ["m gave no reply within -0.9 s"]


def test_requests_run_side_by_side() -> None:
    release = threading.Event()
    model = LanguageModel("m", Source(release))
    futures = [model.submit(HELLO) for _ in range(3)]
    assert not any(f.done() for f in futures)
    release.set()
    assert [f.result(5) for f in futures] == ["too late"] * 3
    assert len(model.calls) == 3


KEYS = {"openai": "sk-o", "anthropic": "sk-ant-a"}


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (LLMOptions(provider_keys=KEYS), "openai gpt-5.5"),
        (LLMOptions(provider_keys={"anthropic": "k"}), "anthropic claude-opus-5-5"),
        (LLMOptions(provider="anthropic", provider_keys=KEYS), "anthropic claude-opus-5-5"),
        (LLMOptions(model="claude-haiku-4-5", provider_keys=KEYS), "anthropic claude-haiku-4-5"),
        (LLMOptions(model="anthropic/claude-x", provider_keys=KEYS), "anthropic anthropic/claude-x"),
        (LLMOptions(model="o4-mini", provider_keys=KEYS), "openai o4-mini"),
        (LLMOptions(model="gpt-6", api_key="k"), "openai gpt-6"),
        (LLMOptions(api_key="sk-ant-api03-x", provider_keys={"openai": "k"}), "anthropic claude-opus-5-5"),
        (LLMOptions(api_key="sk-proj-x"), "openai gpt-5.5"),
        (LLMOptions(api_key="anything"), "openai gpt-5.5"),
        (LLMOptions(model="qwen", api_base="http://127.0.0.1:1"), "openai qwen"),
        (LLMOptions(provider_bases={"anthropic": "http://127.0.0.1:1"}), "anthropic claude-opus-5-5"),
    ],
)
def test_the_provider_follows_from_what_is_set(options: LLMOptions, label: str) -> None:
    model = connect(options)
    assert model.label == label
    model.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (LLMOptions(), "set OPENAI_API_KEY, ANTHROPIC_API_KEY or KERNELTUNE_LLM_API_KEY"),
        (
            LLMOptions(model="claude-opus-5-5", provider_keys={"openai": "k"}),
            "no key for anthropic: set ANTHROPIC_API_KEY",
        ),
        (LLMOptions(provider="openai"), "set OPENAI_API_KEY or KERNELTUNE_LLM_API_KEY"),
        (LLMOptions(provider="nobody"), "unknown provider 'nobody'; known: openai, anthropic, recorded"),
        (LLMOptions(provider="recorded"), "KERNELTUNE_LLM_REPLIES"),
        (LLMOptions(api_key=f"{SECRET}\u00e9"), "non-ASCII"),
        (LLMOptions(api_key=SECRET, api_base="http://example.com"), "unencrypted to example.com"),
        (LLMOptions(api_key="k", ca_bundle="/nowhere/ca.pem"), "the CA bundle /nowhere/ca.pem does not exist"),
    ],
)
def test_what_is_missing_is_said_in_one_line(options: LLMOptions, complaint: str) -> None:
    with pytest.raises(LLMUnavailable) as failure:
        connect(options)
    assert complaint in str(failure.value)
    assert "\n" not in str(failure.value)
    assert SECRET not in str(failure.value)


def test_options_come_from_settings_and_variables() -> None:
    given = {"model": "claude-x", "request_timeout_s": 7.0, "max_rounds": 3, "send_source": False}
    variables = {"ANTHROPIC_API_KEY": SECRET, "OPENAI_BASE_URL": "https://gateway/v1", "OLLAMA_HOST": "x"}
    options = LLMOptions.from_settings(given, variables)
    assert (options.model, options.request_timeout_s) == ("claude-x", 7.0)
    assert options.provider_keys == {"anthropic": SECRET}
    assert options.provider_bases == {"openai": "https://gateway/v1"}
    assert SECRET not in repr(options)


def test_nothing_shows_the_key() -> None:
    model = connect(LLMOptions(api_key=SECRET))
    assert SECRET not in repr(model) + repr(vars(model))
    model.close()


# Access


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.openai.com", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1/responses"),
        (" https://api.openai.com/v1/ ", "https://api.openai.com/v1/responses"),
        ("https://api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        ("https://gateway.example/llm/openai", "https://gateway.example/llm/openai/v1/responses"),
        ("https://gateway.example/llm/v1?version=2", "https://gateway.example/llm/v1/responses?version=2"),
        ("http://localhost:8080/v1", "http://localhost:8080/v1/responses"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/responses"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/responses"),
    ],
)
def test_a_base_may_hold_any_part_of_the_path(base: str, url: str) -> None:
    assert endpoint(base, "/v1/responses", "key") == url


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ("http://example.com:8080/v1", "unencrypted to example.com:8080"),
        ("http://127.0.0.1.example.com", "unencrypted"),
        ("http://10.0.0.7", "unencrypted"),
        (f"https://user:{SECRET}@example.com", "user name or password"),
        ("ftp://example.com", "begins with https://"),
        ("example.com", "begins with https://"),
        ("https://", "begins with https://"),
        ("https://[bad", "not an address"),
        ("https://host:port", "not an address"),
    ],
)
def test_unsafe_or_broken_addresses_are_refused(base: str, complaint: str) -> None:
    with pytest.raises(LLMUnavailable, match=complaint) as failure:
        endpoint(base, "/v1/responses", "key")
    assert SECRET not in str(failure.value)


def test_a_plain_address_is_fine_where_there_is_no_key() -> None:
    assert endpoint("http://inner.example", "/v1/responses", "") == "http://inner.example/v1/responses"


@pytest.mark.parametrize("key", [f"{SECRET} x", f"{SECRET}\nx", f"{SECRET}\x00", f"{SECRET}\u00e9"])
def test_malformed_keys_are_refused_unseen(key: str) -> None:
    with pytest.raises(LLMUnavailable) as failure:
        clean_key(key)
    assert SECRET not in str(failure.value)


def test_white_space_around_a_key_is_no_part_of_it() -> None:
    assert clean_key(f" {SECRET}\r\n") == SECRET


def test_certificate_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(LLMUnavailable, match=r"CA bundle .*empty\.pem holds no certificates"):
        tls_context(empty, "", "")
    with pytest.raises(LLMUnavailable, match=r"client certificate .*empty\.pem cannot be used"):
        tls_context("", empty, "")
    with pytest.raises(LLMUnavailable, match="no client certificate"):
        tls_context("", "", empty)
    with pytest.raises(LLMUnavailable, match=r"client key .* does not exist"):
        tls_context("", empty, tmp_path / "none.pem")


class Hello(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        content = b'{"content": [{"type": "text", "text": "over TLS"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Failed handshakes are part of the game."""


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody but itself vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both


@pytest.fixture
def tls_server(pem: Path) -> Iterator[str]:
    """The address of a server that shows the certificate and wants to see it, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.load_verify_locations(pem)
    context.verify_mode = ssl.CERT_REQUIRED
    with Quiet(("127.0.0.1", 0), Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def asked(**options: Any) -> str:
    model = connect(LLMOptions(provider="anthropic", api_key="k", request_timeout_s=20, **options))
    try:
        return model.submit(HELLO).result(30)
    finally:
        model.close()


def test_a_private_authority_and_a_client_certificate_are_used(tls_server: str, pem: Path) -> None:
    assert asked(api_base=tls_server, ca_bundle=pem, client_cert=pem) == "over TLS"


def test_a_certificate_missing_on_either_side_is_explained(tls_server: str, pem: Path) -> None:
    for options in ({"client_cert": pem}, {"ca_bundle": pem}):
        with pytest.raises(LLMError, match="check the CA bundle and the client certificate"):
            asked(api_base=tls_server, **options)


def test_rows_are_complete() -> None:
    assert [p.name for p in PROVIDERS] == ["openai", "anthropic"]
    for row in PROVIDERS:
        assert endpoint(row.base, row.path, "key").startswith("https://")
