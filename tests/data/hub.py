"""A hub on loopback, over real HTTP: as much of the Hugging Face hub's API as fetching and uploading takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A context manager. `repos` holds the files of each data set; those in `gated` want `token`.

    Attributes:
        asked: what was asked for, method and path.
        uploaded: the files of each model repository that was made, and whether it is private.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]], *, gated: frozenset[str] = frozenset(),
                 token: str = "") -> None:
        self.repos, self.gated, self.token = repos, gated, token
        self.asked: list[str] = []
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server.server_port}"


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_POST(self) -> None:
            sent, path = self.rfile.read(int(self.headers["content-length"])), self.path.partition("?")[0]
            hub.asked.append(f"POST {path}")
            if self.headers.get("authorization") != f"Bearer {hub.token}":
                return self._send(401, b'{"error": "Invalid username or password."}', {}, body=True)
            if path == "/api/repos/create":
                asked = json.loads(sent)
                repo = f"{asked.get('organization', 'me')}/{asked['name']}"
                hub.uploaded[repo], hub.private[repo] = {}, asked.get("visibility") == "private"
                return self._send(200, json.dumps({"url": f"{hub.url}/{repo}", "name": repo}).encode(), {}, body=True)
            repo = "/".join(path.split("/")[3:5])
            if "/preupload/" in path:
                plan = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(sent)["files"]]
                return self._send(200, json.dumps({"files": plan}).encode(), {}, body=True)
            if "/commit/" not in path:  # is the card's front matter sound?
                return self._send(200, b'{"errors": [], "warnings": []}', {}, body=True)
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    hub.uploaded[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            return self._send(200, json.dumps(done).encode(), {}, body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            repo = next((name for name in hub.repos if f"/datasets/{name}" in path), None)
            if repo is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if repo in hub.gated and self.headers.get("authorization") != f"Bearer {hub.token}":
                said = f"Access to dataset {repo} is restricted. You must have access to it and be authenticated."
                code = 401 if "authorization" not in self.headers else 403
                if "/resolve/" in path or "/tree/" in path:  # the hub tells everybody that a gated set is there
                    return self._send(code, json.dumps({"error": said}).encode(),
                                      {"X-Error-Code": "GatedRepo", "X-Error-Message": said}, body)
            return self._repo(repo, path.partition(f"/datasets/{repo}")[2], body)

        def _repo(self, repo: str, rest: str, body: bool) -> None:
            files = hub.repos[repo]
            if rest.startswith("/resolve/"):
                name = rest.split("/", 3)[3]
                if name not in files:
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return self._send(200, files[name], {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": COMMIT}, body)
            if rest.startswith("/tree/"):
                folder = "".join(f"{part}/" for part in rest.split("/")[3:])
                inside = {name.removeprefix(folder): name for name in files if name.startswith(folder)}
                listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])}
                          for short, name in inside.items() if "/" not in short]
                listed += [{"type": "directory", "path": folder + short, "oid": _oid(short.encode())}
                           for short in {short.partition("/")[0] for short in inside if "/" in short}]
                return self._send(200, json.dumps(listed).encode(), {}, body)
            info = {"id": repo, "sha": COMMIT, "private": False, "gated": repo in hub.gated, "tags": [], "downloads": 0,
                    "likes": 0, "siblings": [{"rfilename": name} for name in files]}
            return self._send(200, json.dumps(info).encode(), {}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)),
                                **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler
