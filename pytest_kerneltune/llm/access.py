"""What it takes to reach a provider safely: an address, a key and certificates, each checked before it is used."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pytest_kerneltune.errors import LLMUnavailable


def clean_key(key: str) -> str:
    """``key`` without the white space around it; raises LLMUnavailable where it cannot be a header's value.

    The HTTP stack would quote a malformed key in its exception; this error does not.
    """
    key = key.strip()
    if re.search(r"[^\x21-\x7e]", key):
        raise LLMUnavailable("the API key holds a space, a line break or a non-ASCII character: set it again")
    return key


def endpoint(base: str, path: str, key: str) -> str:
    """The address of ``path`` under ``base``, which may hold the API's version or the whole path already.

    Raises LLMUnavailable where ``base`` is no http(s) address, names a user, or would carry ``key`` in the clear to
    another machine.
    """
    try:
        parts = urlsplit(base.strip())
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise LLMUnavailable("the API base is not an address: use https://host/...") from None
    if parts.username is not None or parts.password is not None:
        raise LLMUnavailable("the API base must not hold a user name or password")
    if parts.scheme not in ("http", "https") or not host:
        raise LLMUnavailable("the API base must be an address that begins with https://")
    if parts.scheme == "http" and key and not _is_loopback(host):
        where = host if port is None else f"{host}:{port}"
        raise LLMUnavailable(f"the API base would send the key unencrypted to {where}: use https://")
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(ca_bundle: str | Path, client_cert: str | Path, client_key: str | Path) -> ssl.SSLContext:
    """Certificates for https; empty arguments are not set.

    ``ca_bundle`` is trusted besides the usual roots, as a proxy that opens TLS needs. ``client_cert`` is a PEM file
    with the client's certificate, ``client_key`` its key where that is another file; an encrypted key cannot be used.
    Raises LLMUnavailable naming a file that is missing or no good.
    """
    import httpx

    for what, file in (("CA bundle", ca_bundle), ("client certificate", client_cert), ("client key", client_key)):
        if file and not Path(file).is_file():
            raise LLMUnavailable(f"the {what} {file} does not exist")
    if client_key and not client_cert:
        raise LLMUnavailable("a client key is set, but no client certificate")
    context = httpx.create_ssl_context()
    try:
        if ca_bundle:
            context.load_verify_locations(cafile=ca_bundle)
    except (ssl.SSLError, OSError):
        raise LLMUnavailable(f"the CA bundle {ca_bundle} holds no certificates") from None
    try:
        if client_cert:
            # An empty password: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(client_cert, client_key or None, password="")
    except (ssl.SSLError, OSError, ValueError):
        key = f" and the client key {client_key}" if client_key else ""
        raise LLMUnavailable(f"the client certificate {client_cert}{key} cannot be used together, or at all") from None
    return context
