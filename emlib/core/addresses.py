"""Safe addresses of the web: over https to the host that they seem to name, or on this machine past all proxies."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")

NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a host that ends in one is an address in numbers, in some notation
NO_PROXY = ("no_proxy", "NO_PROXY")  # clients differ in which one they read, and which one wins


def checked_address(url: str) -> SplitResult:
    """Return the parts of an address over https, or over http on this machine.

    Raises:
        ValueError: it is neither, it holds a user name, or its host is disguised.
    """
    if not url.isascii() or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise ValueError("expected an address of ASCII characters, without spaces and backslashes")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a user name may hide its host; give the host alone")
    host = parts.hostname or ""
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError("expected an address that begins with https://")
    if not is_loopback(host) and (not HOST.fullmatch(host) or NUMBER.fullmatch(host.rpartition(".")[2])):
        raise ValueError(f"expected an address that names its host in words, such as https://example.org, not '{host}'")
    _ = parts.port  # raises ValueError
    return parts


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def ask_directly(url: str) -> None:
    """Exempt the host of a URL from the environment's proxies if it is loopback; to be called before a client is made.

    `HTTP_PROXY` without `NO_PROXY` is common on clusters. HTTP clients would then send the requests for a judge or a
    vLLM server on this machine, prompts and all, to the proxy. The environment itself is changed, because child
    processes and libraries make clients too.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        return
    for name in NO_PROXY:
        known = [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]
        if host not in known and "*" not in known:
            os.environ[name] = ",".join([*known, host])
