"""Addresses, keys, headers and certificates, with real TLS on loopback."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm.access import clean_headers, clean_key, endpoint, tls_context
from pytest_kerneltune.llm.http import HttpModel
from pytest_kerneltune.llm.providers import Ask, provider_named
from pytest_kerneltune.search import Message

SECRET = "sk-very-secret"
PASSWORD = "open-sesame-0123"

# Addresses


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
        ("http://0.0.0.0:8080", "http://0.0.0.0:8080/v1/responses"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/responses"),
    ],
)
def test_a_base_may_hold_any_part_of_the_path(base: str, url: str) -> None:
    assert endpoint(base, "/v1/responses", "key") == url


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ("", "no API base is set: set KERNELTUNE_LLM_API_BASE"),
        (
            "http://example.com:8080/v1",
            "unencrypted to example.com:8080: .*name example.com in KERNELTUNE_LLM_ALLOW_HTTP",
        ),
        ("http://127.0.0.1.example.com", "unencrypted"),
        ("http://127.1", "unencrypted"),
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
    assert "KERNELTUNE_LLM_API_BASE" in str(failure.value)
    assert SECRET not in str(failure.value)
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("", ()), ("key", ("inner.example",)), ("key", ("other", " Inner.Example:80 "))],
)
def test_a_plain_address_is_fine_without_a_key_or_where_the_host_is_allowed(key: str, allowed: Sequence[str]) -> None:
    assert endpoint("http://inner.example:80", "/v1/x", key, allowed) == "http://inner.example:80/v1/x"


@pytest.mark.parametrize("allowed", ["example", "inner.example:81", "*", ""])
def test_only_the_very_host_is_allowed(allowed: str) -> None:
    with pytest.raises(LLMUnavailable, match="unencrypted"):
        endpoint("http://inner.example:80", "/v1/x", "key", [allowed])


# Keys and headers


@pytest.mark.parametrize("key", [f"{SECRET} x", f"{SECRET}\nx", f"{SECRET}\x00", f"{SECRET}\u00e9"])
def test_malformed_keys_are_refused_unseen(key: str) -> None:
    with pytest.raises(LLMUnavailable, match="KERNELTUNE_LLM_API_KEY") as failure:
        clean_key(key)
    assert SECRET not in str(failure.value)


def test_white_space_around_a_key_is_no_part_of_it() -> None:
    assert clean_key(f" {SECRET}\r\n") == SECRET


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("", {}),
        (" \n", {}),
        ('{"X-Team": "kernels", "X-Count": 3}', {"X-Team": "kernels", "X-Count": "3"}),
        ("X-Team: kernels", {"X-Team": "kernels"}),
        ("X-Team: kernels\r\nX-Other:a:b\n", {"X-Team": "kernels", "X-Other": "a:b"}),
        ("X-Team: kernels; X-Other: a;", {"X-Team": "kernels", "X-Other": "a"}),
        ("Cookie: a=b; c=d", {"Cookie": "a=b; c=d"}),
        ("X-Link: a; https://host", {"X-Link": "a; https://host"}),
    ],
)
def test_headers_are_json_or_lines(text: str, headers: dict[str, str]) -> None:
    assert clean_headers(text) == headers


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"{{'X-Team': '{SECRET}'}}", "no JSON object"),
        (json.dumps({"X-Team": [SECRET]}), "no JSON object"),
        (SECRET + " and more", "no header's name"),
        (f"{SECRET} x: y", "no header's name"),
        (json.dumps({"X-Team": f"{SECRET}\r\nX-Other: 1"}), "value of X-Team"),
        (json.dumps({"X-Team": f"{SECRET}\u00e9"}), "value of X-Team"),
        (f"Content-Length: 3; X-Team: {SECRET}", "cannot set Content-Length"),
    ],
)
def test_malformed_headers_are_refused_unseen(text: str, complaint: str) -> None:
    with pytest.raises(LLMUnavailable, match=complaint) as failure:
        clean_headers(text)
    assert "KERNELTUNE_LLM_EXTRA_HEADERS" in str(failure.value)
    assert SECRET not in str(failure.value)
    assert failure.value.__context__ is None


# Certificates


@dataclass(frozen=True)
class Authority:
    """Makes keys and certificates in a folder."""

    folder: Path

    def issue(self, name: str, signer: str = "", host: str = "IP:127.0.0.1") -> None:
        """NAME.key and NAME.pem; a certificate signed by ``signer``, or by itself."""
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
        signed = ["-CA", f"{signer}.pem", "-CAkey", f"{signer}.key"] if signer else []
        extensions = ["-addext", f"subjectAltName={host}"] if signer else []
        self._openssl("req", "-x509", *kind, *files, *signed, *extensions)

    def encrypt(self, name: str, password: str) -> None:
        """NAME.locked: NAME.key under a password."""
        files = ["-in", f"{name}.key", "-out", f"{name}.locked"]
        self._openssl("pkcs8", "-topk8", *files, "-passout", f"pass:{password}")

    def combine(self, name: str) -> None:
        """NAME.both: key and certificate in one file."""
        parts = [(self.folder / f"{name}.{kind}").read_text() for kind in ("key", "pem")]
        (self.folder / f"{name}.both").write_text("".join(parts))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private authority, certificates for server and client, a stranger's, and some that are no good."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    for name in ("ca", "strangers_ca"):
        authority.issue(name)
    authority.issue("server", "ca")
    authority.issue("elsewhere", "ca", "DNS:elsewhere.example")
    authority.issue("client", "ca")
    authority.issue("stranger", "strangers_ca")
    authority.encrypt("client", PASSWORD)
    for name in ("server", "elsewhere", "client"):
        authority.combine(name)
    (folder / "empty.pem").write_text("nothing")
    return folder


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

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.handshakes = 0
        super().__init__(("127.0.0.1", 0), Hello)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.handshakes += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Failed handshakes are part of the game."""


def serving(server: Quiet) -> Iterator[Quiet]:
    with server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def server_context(files: Path, certificate: str = "server.both") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / certificate)
    return context


@pytest.fixture
def server(files: Path) -> Iterator[Quiet]:
    """A server whose certificate a private authority signed."""
    yield from serving(Quiet(server_context(files)))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def mutual(files: Path, request: pytest.FixtureRequest) -> Iterator[Quiet]:
    """A server that wants a certificate of the client's, too."""
    context = server_context(files)
    context.maximum_version = context.minimum_version = request.param
    context.load_verify_locations(files / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    yield from serving(Quiet(context))


def asked(server: Quiet, context: ssl.SSLContext, scheme: str = "https") -> str:
    row = provider_named("anthropic")
    assert row is not None
    url = endpoint(f"{scheme}://127.0.0.1:{server.server_address[1]}", row.path, SECRET)
    model = HttpModel(row, Ask("m"), SECRET, url, timeout_s=60, verify=context, sleep=lambda _: None)
    try:
        return model.ask([Message("user", "Hello.")]).text
    finally:
        model.close()


def test_a_private_authority_is_trusted_besides_the_usual_ones(server: Quiet, files: Path) -> None:
    context = tls_context(files / "ca.pem", "", "")
    assert asked(server, context) == "over TLS"
    assert len(context.get_ca_certs()) >= len(tls_context("", "", "").get_ca_certs())


@pytest.mark.parametrize(
    ("certificate", "key", "password"),
    [
        ("client.both", "", ""),
        ("client.pem", "client.key", ""),
        ("client.pem", "client.key", "of nothing"),
        ("client.pem", "client.locked", PASSWORD),
    ],
)
def test_a_client_certificate_is_shown(mutual: Quiet, files: Path, certificate: str, key: str, password: str) -> None:
    context = tls_context(files / "ca.pem", files / certificate, files / key if key else "", password)
    assert asked(mutual, context) == "over TLS"


@pytest.mark.parametrize("certificate", ["", "stranger"])
def test_a_client_certificate_that_is_missing_or_unknown_is_explained(
    mutual: Quiet, files: Path, certificate: str
) -> None:
    shown = (files / f"{certificate}.pem", files / f"{certificate}.key") if certificate else ("", "")
    with pytest.raises(LLMError, match="check KERNELTUNE_LLM_CLIENT_CERT and KERNELTUNE_LLM_CLIENT_KEY"):
        asked(mutual, tls_context(files / "ca.pem", *shown))
    assert mutual.handshakes == 1


@pytest.mark.parametrize(
    ("certificate", "ca", "complaint"),
    [
        ("server.both", "", "name the authority that vouches for the server in KERNELTUNE_LLM_CA_BUNDLE"),
        ("server.both", "strangers_ca.pem", "KERNELTUNE_LLM_CA_BUNDLE"),
        ("elsewhere.both", "ca.pem", "another host's: check KERNELTUNE_LLM_API_BASE"),
    ],
)
def test_a_server_that_cannot_be_trusted_gets_nothing(files: Path, certificate: str, ca: str, complaint: str) -> None:
    for server in serving(Quiet(server_context(files, certificate))):
        with pytest.raises(LLMError, match=complaint):
            asked(server, tls_context(files / ca if ca else "", "", ""))
        assert server.handshakes == 1


def test_a_server_without_tls_is_explained(files: Path) -> None:
    for server in serving(Quiet(None)):
        with pytest.raises(LLMError, match="does not speak TLS: check KERNELTUNE_LLM_API_BASE"):
            asked(server, tls_context(files / "ca.pem", "", ""))


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "password", "complaint"),
    [
        ("none.pem", "", "", "", r"KERNELTUNE_LLM_CA_BUNDLE: the file .*none\.pem does not exist"),
        ("empty.pem", "", "", "", r"KERNELTUNE_LLM_CA_BUNDLE: .*empty\.pem holds no certificates"),
        ("", "none.pem", "", "", r"KERNELTUNE_LLM_CLIENT_CERT: the file .*none\.pem does not exist"),
        ("", "empty.pem", "", "", r"KERNELTUNE_LLM_CLIENT_CERT: .*empty\.pem holds no certificate"),
        ("", "client.pem", "", "", r"KERNELTUNE_LLM_CLIENT_CERT: .*client\.pem holds no .* no key for it"),
        ("", "client.pem", "none.key", "", r"KERNELTUNE_LLM_CLIENT_KEY: the file .*none\.key does not exist"),
        ("", "", "client.key", "", "KERNELTUNE_LLM_CLIENT_KEY is set, but KERNELTUNE_LLM_CLIENT_CERT is not"),
        ("", "client.pem", "stranger.key", "", r"client\.pem and the key do not belong together .*stranger\.key"),
        ("", "client.pem", "client.locked", "", "is encrypted, and KERNELTUNE_LLM_CLIENT_KEY_PASSWORD is not set"),
        ("", "client.pem", "client.locked", SECRET, "KERNELTUNE_LLM_CLIENT_KEY_PASSWORD does not open it"),
        ("", "client.pem", "client.locked", SECRET * 100, "cannot be read"),
    ],
)
def test_files_that_are_no_good_are_named(
    files: Path, ca: str, certificate: str, key: str, password: str, complaint: str
) -> None:
    bundle, shown, own = (files / name if name else "" for name in (ca, certificate, key))
    with pytest.raises(LLMUnavailable, match=complaint) as failure:
        tls_context(bundle, shown, own, password)
    assert SECRET not in str(failure.value)
    assert failure.value.__context__ is None


def test_a_variable_of_the_system_that_is_no_good_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(LLMUnavailable, match="SSL_CERT_FILE"):
        tls_context("", "", "")
