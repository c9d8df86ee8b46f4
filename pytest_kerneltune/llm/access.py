"""What it takes to reach a provider safely: an address, keys and certificates, each checked before it is used.

All functions raise LLMUnavailable that says which variable to set; none quotes a secret.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pytest_kerneltune.errors import LLMUnavailable

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_OF_THE_STACK = {"accept-encoding", "connection", "content-encoding", "content-length", "expect", "transfer-encoding"}


def variable(name: str) -> str:
    """The environment variable of a setting of the language model."""
    return f"KERNELTUNE_LLM_{name}"


def clean_key(key: str) -> str:
    """``key`` without the white space around it; raises LLMUnavailable where it cannot be a header's value.

    The HTTP stack would quote a malformed key in its exception; this error does not.
    """
    key = key.strip()
    if re.search(r"[^\x21-\x7e]", key):
        raise LLMUnavailable(
            f"the API key holds a space, a line break or a non-ASCII character: set {variable('API_KEY')} again"
        )
    return key


def clean_headers(text: str) -> dict[str, str]:
    """The headers that ``text`` lists: a JSON object, or "Name: value" on lines or between semicolons."""
    what = f"{variable('EXTRA_HEADERS')} must be a JSON object or lines of 'Name: value'"
    headers = dict(_header_fields(text.strip()))
    for name, value in headers.items():
        if not re.fullmatch(_NAME, name):
            raise LLMUnavailable(f"{what}; it holds what is no header's name")
        if name.lower() in _OF_THE_STACK:
            raise LLMUnavailable(f"{variable('EXTRA_HEADERS')} cannot set {name}")
        if not re.fullmatch(r"[\x20-\x7e]*", value):
            raise LLMUnavailable(f"{what}; the value of {name} holds a line break or a non-ASCII character")
    return headers


def _header_fields(text: str) -> Iterator[tuple[str, str]]:
    if text.startswith("{"):
        yield from _header_object(text)
    elif text:
        # A semicolon within a value is not followed by a header's name and a colon.
        for field in re.split(rf"\r?\n|;(?=\s*{_NAME}\s*:(?!//))", text):
            name, _, value = field.partition(":")
            if field.strip():
                yield name.strip(), value.strip().removesuffix(";")


def _header_object(text: str) -> Iterator[tuple[str, str]]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(v, str | int | float) for v in fields.values()):
        raise LLMUnavailable(f"{variable('EXTRA_HEADERS')} is no JSON object of texts")
    yield from ((name.strip(), str(value).strip()) for name, value in fields.items())


def endpoint(base: str, path: str, key: str, allow_http: Collection[str] = ()) -> str:
    """The address of ``path`` under ``base``, which may hold the API's version or the whole path already.

    Raises LLMUnavailable where ``base`` is no http(s) address, names a user, or would carry ``key`` (or any other
    secret, given in its place) in the clear to another machine whose name is not in ``allow_http``.
    """
    what = f"the API base ({variable('API_BASE')})"
    if not base.strip():
        raise LLMUnavailable(f"no API base is set: set {variable('API_BASE')} to the server's address")
    try:
        parts = urlsplit(base.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts = None
    if parts is None:
        raise LLMUnavailable(f"{what} is not an address: use https://host/...")
    if parts.username is not None or parts.password is not None:
        raise LLMUnavailable(f"{what} must not hold a user name or password")
    if parts.scheme not in ("http", "https") or not host:
        raise LLMUnavailable(f"{what} must be an address that begins with https://")
    where = host if port is None else f"{host}:{port}"
    allowed = {name.strip().lower() for name in allow_http}
    if parts.scheme == "http" and key and not is_loopback(host) and allowed.isdisjoint({host, where}):
        raise LLMUnavailable(
            f"{what} would send the key or extra headers unencrypted to {where}: use https://, "
            f"or name {host} in {variable('ALLOW_HTTP')}"
        )
    return urlunsplit(SplitResult(parts.scheme, parts.netloc, _joined(parts.path, path), parts.query, ""))


def _joined(base: str, path: str) -> str:
    """``base`` followed by what it lacks of ``path``."""
    base = base.rstrip("/")
    pieces = path.strip("/").split("/")
    for n in range(len(pieces), 0, -1):
        start = "/" + "/".join(pieces[:n])
        if base.endswith(start):
            return base.removesuffix(start) + path
    return base + path


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def tls_context(
    ca_bundle: str | Path, client_cert: str | Path, client_key: str | Path, password: str = ""
) -> ssl.SSLContext:
    """Certificates for https; empty arguments are not set.

    ``ca_bundle`` is trusted besides the usual roots, as a proxy that opens TLS needs. ``client_cert`` is a PEM file
    with the client's certificate, ``client_key`` its key where that is another file; ``password`` opens a key that is
    encrypted. Raises LLMUnavailable naming a file that is missing or no good.
    """
    files = {"CA_BUNDLE": ca_bundle, "CLIENT_CERT": client_cert, "CLIENT_KEY": client_key}
    for name, file in files.items():
        if file and not Path(file).is_file():
            raise LLMUnavailable(f"{variable(name)}: the file {file} does not exist")
    if client_key and not client_cert:
        raise LLMUnavailable(f"{variable('CLIENT_KEY')} is set, but {variable('CLIENT_CERT')} is not")
    context = _trusting(ca_bundle)
    if client_cert and (complaint := _load(context, client_cert, client_key, password)):
        raise LLMUnavailable(complaint)
    return context


def _trusting(ca_bundle: str | Path) -> ssl.SSLContext:
    import httpx

    name = "SSL_CERT_FILE or SSL_CERT_DIR"
    try:
        context = httpx.create_ssl_context()
        name = f"{variable('CA_BUNDLE')}: {ca_bundle}"
        if ca_bundle:
            context.load_verify_locations(cafile=ca_bundle)
        return context
    except (ssl.SSLError, OSError):
        pass
    raise LLMUnavailable(f"{name} holds no certificates that can be read")


def _load(context: ssl.SSLContext, client_cert: str | Path, client_key: str | Path, password: str) -> str:
    """Load the client's certificate and key; what is wrong with them, if anything."""
    holder = f"{variable('CLIENT_KEY')}: {client_key}" if client_key else f"{variable('CLIENT_CERT')}: {client_cert}"
    try:
        # A password in any case: without one, OpenSSL would ask on the terminal.
        context.load_cert_chain(client_cert, client_key or None, password=password)
        return ""
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
    except (OSError, ValueError):
        return f"{variable('CLIENT_CERT')}: {client_cert} or its key cannot be read"
    if mismatch:
        return f"{variable('CLIENT_CERT')}: {client_cert} and the key do not belong together ({holder})"
    if b"ENCRYPTED" in Path(client_key or client_cert).read_bytes():
        cause = "does not open it" if password else "is not set"
        return f"{holder} is encrypted, and {variable('CLIENT_KEY_PASSWORD')} {cause}"
    return f"{variable('CLIENT_CERT')}: {client_cert} holds no certificate, or there is no key for it ({holder})"
