"""A Hugging Face hub on 127.0.0.1: the few requests that the real client makes, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves one repository: path -> bytes. `asked` lists every (method, path) that came in."""

    def __init__(self, repo: str, files: Mapping[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.asked: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cuts: dict[str, int] = {}  # how many transfers of a file break off halfway
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> set[str]:
        """The files that were asked for, by HEAD or GET."""
        prefix = f"/{self.repo}/resolve/{SHA}/"
        return {path.removeprefix(prefix) for _, path in self.asked if path.startswith(prefix)}

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """The requests are in `asked`; stderr stays quiet."""

    def _answer(self, body: bool) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path))
        file = path.removeprefix(f"/{hub.repo}/resolve/{SHA}/")
        if path in (f"/api/models/{hub.repo}", f"/api/models/{hub.repo}/revision/main"):
            self._json(self._info())
        elif path == f"/api/models/{hub.repo}/tree/{SHA}":
            self._json([self._entry(name) for name in hub.files])
        elif file != path and file in hub.files:
            self._file(file, body)
        else:
            code = "EntryNotFound" if file != path else "RepoNotFound"
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": code}, body)

    def _info(self) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.served.files]
        return {"id": self.served.repo, "sha": SHA, "siblings": siblings, "private": False}

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.served.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}

    def _file(self, name: str, body: bool) -> None:
        content = self.served.files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if not asked or not body:
            self._send(200, content, headers, body, cut=body and self._cut(name))
            return
        self.served.ranges.append(f"{name} {asked}")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1 if last else len(content)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, content[start:stop], headers, body, cut=self._cut(name))

    def _cut(self, name: str) -> bool:
        left = self.served.cuts.get(name, 0)
        self.served.cuts[name] = left - 1
        return left > 0

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, True)

    def _send(
        self, status: int, content: bytes, headers: Mapping[str, str], body: bool, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
