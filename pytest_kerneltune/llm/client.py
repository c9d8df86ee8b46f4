"""The HTTP client of requests to one address: what it connects to, and what it is not to follow."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from pytest_kerneltune.errors import LLMUnavailable
from pytest_kerneltune.llm.access import is_loopback

LOCATION = "kerneltune.location"
"""The extension of responses that holds where a redirect leads."""

_PORTS = {"http": 80, "https": 443}

PROXY_VARIABLES = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"


def client(verify: ssl.SSLContext, url: str) -> httpx.Client:
    """A client for requests to ``url``; raises LLMUnavailable where the environment's proxies are no good.

    What stays on this machine goes through no proxy, whatever the environment says: it may be unencrypted.
    """
    # Each request has a connection of its own: one kept would have died between two questions minutes apart.
    limits = httpx.Limits(max_keepalive_connections=0)
    hooks = {"response": [_set_location_aside]}
    try:
        return httpx.Client(
            verify=verify, follow_redirects=False, limits=limits, trust_env=not _is_near(url), event_hooks=hooks
        )
    except ImportError:
        reason = "a SOCKS proxy needs another package: pip install httpx[socks]"
    except Exception as error:  # its text may quote a proxy's password
        reason = f"no HTTP client can be set up ({type(error).__name__}): check {PROXY_VARIABLES}"
    raise LLMUnavailable(reason)


def proxies(url: str) -> dict[tuple[str, int], str]:
    """The proxies that requests to ``url`` may go through, as "scheme://host:port", by host and port."""
    if _is_near(url):
        return {}
    set_up = getproxies()
    return dict(_proxy(set_up[scheme]) for scheme in ("http", "https", "all") if set_up.get(scheme))


def _proxy(address: str) -> tuple[tuple[str, int], str]:
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        place = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1080)
    except ValueError:
        return ("", 0), ""
    return place, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _is_near(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _set_location_aside(response: httpx.Response) -> None:
    """httpx reads the header also where it is not to follow it, and fails where it is no address."""
    if "location" in response.headers:
        response.extensions[LOCATION] = response.headers.pop("location")
