"""A page in headless Chromium that a test uses step by step, and a server that fails on request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.kit.web_tools import NODE

TYPES = {".html": "text/html", ".css": "text/css", ".json": "application/json"} | {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}


@dataclass
class Browser:
    """Chromium with one page; `session` is tests/web/session.mjs in a folder with its packages."""

    process: subprocess.Popen[str]

    def do(self, step: str, argument: Any) -> Any:
        """One step of session.mjs -> its value. Raises RuntimeError with what went wrong."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({step: argument}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "Chromium has ended"}')
        if "error" in answer:
            raise RuntimeError(f"{step} {argument}: {answer['error']}")
        return answer["value"]

    def js(self, expression: str) -> Any:
        """The value of an expression, a promise being waited for."""
        return self.do("evaluate", expression)

    def until(self, condition: str, seconds: int = 60) -> None:
        """Wait until an expression is true. Raises RuntimeError after so long."""
        self.js(
            "(async () => { const end = Date.now() + "
            f"{seconds * 1000}; while (!({condition})) {{ if (Date.now() > end) "
            f"throw new Error('waited in vain: ' + document.body.innerText); "
            "await new Promise((next) => setTimeout(next, 20)); } })()"
        )

    def pick(self, selector: str, files: list[Path]) -> None:
        """Choose files in a file input."""
        found = self.do("call", ["Runtime.evaluate", {"expression": f"({selector})"}])
        names = {"files": [str(file) for file in files], "objectId": found["result"]["objectId"]}
        self.do("call", ["DOM.setFileInputFiles", names])


@contextmanager
def browser(
    session: Path, profile: Path, width: int, scheme: str = "light", *flags: str
) -> Iterator[Browser]:
    """Chromium with a profile folder of its own, ended at the end; `flags` are its own."""
    # The package unpacks Chromium to TMPDIR. The other setting has it unpack NSS beside it, which
    # a bare machine lacks.
    settings = {"TMPDIR": str(session.parent), "AWS_LAMBDA_JS_RUNTIME": "nodejs24.x"}
    command = [str(NODE), str(session), str(profile), str(width), scheme, *flags]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | settings, text=True, **pipes) as process:
        try:
            yield Browser(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class Site:
    """A server of a folder. Ranges as asked, unless `ranges` is off.

    `cut`: after so many bytes of a file that is larger, the connection is closed, so many times as
    `cuts` says. `down`: connections for packages are closed unanswered. `slow`: seconds before each
    64 KiB. `asked` are (path, Range) so far.
    """

    folder: Path
    port: int = 0
    ranges: bool = True
    cut: int = 0
    cuts: int = 0
    down: bool = False
    slow: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """The site, while it is up; its port is chosen at the first time, and kept."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            _answer(site, self)

    with ThreadingHTTPServer(("127.0.0.1", site.port), Handler) as server:
        site.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def _answer(site: Site, request: BaseHTTPRequestHandler) -> None:
    path = site.folder / request.path.split("?")[0].lstrip("/")
    path = path / "index.html" if path.is_dir() else path
    asked = request.headers.get("Range")
    site.asked.append((request.path, asked))
    if site.down and "/packages/" in request.path:
        return
    if not path.is_file():
        request.send_error(404)
        return
    content = path.read_bytes()
    found = re.fullmatch(r"bytes=(\d+)-", asked or "") if site.ranges else None
    start = int(found[1]) if found else 0
    if start >= len(content) > 0:
        request.send_error(416)
        return
    request.send_response(206 if found else 200)
    request.send_header("Content-Type", TYPES.get(path.suffix, "application/octet-stream"))
    request.send_header("Content-Length", str(len(content) - start))
    if found:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.end_headers()
    body = content[start:]
    if "/packages/" in request.path and 0 < site.cut < len(body) and site.cuts > 0:
        site.cuts -= 1
        body = body[: site.cut]
    try:
        for at in range(0, len(body), 1 << 16):
            if site.slow and "/packages/" in request.path:
                threading.Event().wait(site.slow)
            request.wfile.write(body[at : at + (1 << 16)])
    except ConnectionError:
        return  # the page did not want the rest
