"""Addresses of the web: over https, or on this machine, and of the host that they seem to name."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")

NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a host that ends in one is an address in numbers, in some notation


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
