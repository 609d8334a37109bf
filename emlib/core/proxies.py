"""Servers on this machine are asked directly: a proxy that the environment names does not reach them.

`HTTP_PROXY` without `NO_PROXY` is common on clusters. HTTP clients would then send the requests for a judge or a vLLM
server on loopback, prompts and all, to the proxy. All other addresses keep the proxy.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from emlib.core.addresses import is_loopback

NAMES = ("no_proxy", "NO_PROXY")  # clients differ in which one they read, and which one wins


def ask_directly(url: str) -> None:
    """Exempt the host of a URL from the environment's proxies if it is loopback; to be called before a client is made.

    It changes the environment, because child processes and libraries make clients too.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        return
    for name in NAMES:
        known = [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]
        if host not in known and "*" not in known:
            os.environ[name] = ",".join([*known, host])
