"""Slow: the page of examples/web in headless Chromium."""

from __future__ import annotations

import functools
import json
import platform
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emo_export.runtimes.generate import generate
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY
from tests.converters.onnx.test_to_onnx import exact
from tests.kit.exporting import exported
from tests.kit.paths import NANO
from tests.kit.web_tools import EXAMPLE, TESTS, lay_out, node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="the npm package @sparticuz/chromium carries a Chromium for x86-64 Linux only",
    ),
]

# What a reader does: fill in the form, press the button, wait until the page says how it went.
USE = """(async () => {
    const { folder, prompt, count, status } = document.forms[0].elements;
    [folder.value, prompt.value, count.value] = [FOLDER, PROMPT, 16];
    document.querySelector("button").click();
    while (["", "working"].includes(status.value)) {
        await new Promise((next) => setTimeout(next, 50));
    }
    return [status.value, document.querySelector("pre").textContent];
})()"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address; int4@if lies beside it as `model`, a qmoe graph as `newer`."""
    folder = lay_out(tmp_path_factory.mktemp("site") / "web", EXAMPLE)
    (folder / "model").symlink_to(exported(NANO, "onnx:int4@if"))
    (folder / "newer").symlink_to(exported(NANO, "onnx:int4"))
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("browser") / "web", TESTS) / "chromium.mjs"


def use(browser: Path, site: str, profile: Path, folder: str, prompt: str) -> list[str]:
    """[status, text] that the page shows at the end."""
    expression = USE.replace("FOLDER", json.dumps(folder)).replace("PROMPT", json.dumps(prompt))
    # The package unpacks Chromium to TMPDIR. The other setting has it unpack NSS beside it, which
    # a bare machine lacks.
    settings = {"TMPDIR": str(browser.parent), "AWS_LAMBDA_JS_RUNTIME": "nodejs24.x"}
    printed = node(browser, profile, site, expression, settings=settings)
    found: list[str] = json.loads(printed)
    return found


def test_the_page_writes_what_our_runtime_does(browser: Path, site: str, tmp_path: Path) -> None:
    folder, prompt = exported(NANO, "onnx:int4@if"), "def main("
    tokenizer = HfTokenizer(folder)
    ids = tokenizer.encode(prompt)
    # Float activations, as in onnxruntime-web.
    said = generate(exact(folder), tokenizer, ids, GREEDY, max_tokens=16)
    assert use(browser, site, tmp_path, "model", prompt) == ["done", "".join(said.texts())]


def test_the_page_says_what_it_cannot_open(browser: Path, site: str, tmp_path: Path) -> None:
    status, text = use(browser, site, tmp_path, "newer", "def")
    assert status.startswith('failed: the graph "qmoe" needs ONNX Runtime 1.31') and text == ""
