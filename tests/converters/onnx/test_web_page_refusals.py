"""Slow: what the page of examples/web, its build and its server refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.browsing import Browser, Site, browser, serving
from tests.kit.web_page import (
    ERROR,
    FOLDER,
    LIST,
    STATUS,
    load,
    press,
    refused,
    show,
    write,
)
from tests.kit.web_tools import EXAMPLE, IN_CHROMIUM, NODE, node

pytestmark = IN_CHROMIUM


def changed(made: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A copy of what a browser reads of a package, the manifest changed and sealed anew."""
    shutil.copytree(made / FOLDER, place / FOLDER)
    manifest = json.loads((made / "manifest.json").read_text("utf-8"))
    change(manifest)
    text = json.dumps(manifest | {"sha256": "0" * 64}, indent=2)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (place / "manifest.json").write_text(text.replace("0" * 64, seal), "utf-8")


def look(page: Browser, address: str) -> None:
    page.js(f"document.getElementById('url').value = {address!r}")
    press(page, "Look")


def only_gguf(manifest: dict[str, Any]) -> None:
    del manifest["targets"]["onnx:int4@if"]


def larger_than_memory(manifest: dict[str, Any]) -> None:
    for entry in manifest["files"]:
        if entry["path"].endswith("model.onnx.data"):
            entry["bytes"], entry["sha256"] = 5_000_000_000, "1" * 64


def of_another_day(manifest: dict[str, Any]) -> None:
    manifest["version"] = 3


def no_data(manifest: dict[str, Any]) -> None:
    manifest["files"] = [one for one in manifest["files"] if "onnx.data" not in one["path"]]


def test_wrong_packages_are_refused(session: Path, built: Path, made: Path, tmp_path: Path) -> None:
    for index, change in enumerate((only_gguf, of_another_day, no_data, larger_than_memory)):
        changed(made, tmp_path / "site" / "packages" / str(index), change)
    for file in built.iterdir():
        if file.is_file() and file.name != "packages.json":
            shutil.copy(file, tmp_path / "site")
    place = tmp_path / "site" / "packages"
    damaged = shutil.copytree(made, place / "damaged")
    data = bytearray((damaged / FOLDER / "model.onnx.data").read_bytes())
    data[12345] ^= 1
    (damaged / FOLDER / "model.onnx.data").write_bytes(data)
    (shutil.copytree(made, place / "short") / FOLDER / "tokenizer.json").write_text("{}")
    shutil.copytree(made, place / "edited")
    text = (made / "manifest.json").read_text("utf-8")
    (place / "edited" / "manifest.json").write_text(text.replace("emo-nano", "emo-mine"), "utf-8")
    (place / "text").mkdir()
    (place / "text" / "manifest.json").write_text("<html>", "utf-8")
    with (
        serving(Site(tmp_path / "site")) as site,
        browser(session, tmp_path / "profile", 360) as page,
    ):
        show(page, site)
        assert page.js("document.getElementById('more').open")  # there is nothing to choose yet
        for name, says in {
            "0": "can open none of this package's targets (gguf:q8_0): export with --to",
            "1": "has version 3, expected 2",
            "2": f"has no {FOLDER}/model.onnx.data",
            "edited": "is not as it was written",
            "text": "is not JSON",
            "nothing": "the server says 404: give the folder in which manifest.json lies",
        }.items():
            look(page, f"packages/{name}")
            refused(page, says)
            assert page.js(LIST) == []
        look(page, "http://127.0.0.1:9/")
        page.until(f"{ERROR}.includes('no answer')")
        for name, says in {
            "3": "WebAssembly's memory ends at 4.3 GB: export with fewer experts",
            "damaged": "(its SHA-256 differs), and was dropped",
            "short": "tokenizer.json has 2 bytes, the manifest says ",
        }.items():
            look(page, f"packages/{name}/")
            page.until(f"{LIST}.length === 1 && {STATUS} === ''")
            press(page, "Load")
            refused(page, says)
            show(page, site)  # nothing was stored
            assert page.js(LIST) == []


def test_a_full_storage_is_told_and_what_came_is_kept(
    phone: Browser, site: Site, said: str
) -> None:
    quota = {"origin": site.url.rstrip("/"), "quotaSize": 24_000_000}
    phone.do("call", ["Storage.overrideQuotaForOrigin", quota])
    press(phone, "Load")
    refused(phone, "the browser's storage is full: free storage on the device and go on")
    phone.do("call", ["Storage.overrideQuotaForOrigin", {"origin": quota["origin"]}])
    site.asked = []
    load(phone)
    data = [asked for path, asked in site.asked if path.endswith("model.onnx.data")]
    assert data[0] is not None and data[0].startswith("bytes=")
    assert write(phone) == said


def test_too_small_a_memory_is_told(session: Path, site: Site, tmp_path: Path) -> None:
    few = "--js-flags=--wasm-max-mem-pages=400"  # 26 MB
    with browser(session, tmp_path, 360, "light", few) as page:
        show(page, site)
        press(page, "Load")
        refused(page, "this device's memory is too small: the model has 14.4 MB")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("delete window.WebAssembly", "this browser has no WebAssembly"),
        (
            "Object.defineProperty(window, 'isSecureContext', {value: false})",
            "only for pages from https:// or http://localhost",
        ),
    ],
)
def test_what_a_browser_lacks_is_told(phone: Browser, site: Site, spoil: str, says: str) -> None:
    phone.do("call", ["Page.addScriptToEvaluateOnNewDocument", {"source": spoil}])
    show(phone, site)
    assert says in phone.js(ERROR)


def test_the_server_of_the_example_sends_ranges_and_headers(built: Path) -> None:
    script = EXAMPLE / "serve.mjs"
    command = [str(NODE), str(script), str(built), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            whole = (built / "style.css").read_bytes()
            ask = urllib.request.Request(f"{address}style.css", headers={"Range": "bytes=100-"})
            with urllib.request.urlopen(ask) as answer:
                assert answer.status == 206 and answer.read() == whole[100:]
                assert answer.headers["Content-Range"] == f"bytes 100-{len(whole) - 1}/{len(whole)}"
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            for path, code in (("%2e%2e/web/build.mjs", 404), ("nothing", 404), ("%zz", 400)):
                with pytest.raises(urllib.error.HTTPError) as failed:
                    urllib.request.urlopen(address + path)
                assert failed.value.code == code
        finally:
            server.kill()


def test_the_build_refuses(built: Path, made: Path, tmp_path: Path) -> None:
    script = built.parent / "web" / "build.mjs"
    with pytest.raises(RuntimeError, match="exists: give a new folder"):
        node(script, built)
    changed(made, tmp_path / "gguf", only_gguf)
    with pytest.raises(RuntimeError, match="can open none of this package's targets"):
        node(script, tmp_path / "site", tmp_path / "gguf")
    assert not list(tmp_path.glob("site*"))
