"""Slow: the page of examples/web in headless Chromium, as a reader uses it."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emo_export.runtimes.generate import generate
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY
from tests.converters.onnx.test_to_onnx import exact
from tests.kit.browsing import Browser, Site, browser, serving
from tests.kit.packages import package
from tests.kit.paths import NANO
from tests.kit.web_tools import EXAMPLE, NODE, TESTS, lay_out, node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="the npm package @sparticuz/chromium carries a Chromium for x86-64 Linux only",
    ),
]

READY = "document.documentElement.dataset.ready !== undefined"
STATUS = "document.getElementById('status').value"
ERROR = "document.getElementById('error').textContent"
TEXT = "document.getElementById('out').textContent"
LIST = "[...document.querySelectorAll('#models .what')].map((what) => what.textContent)"
FOLDER = "onnx-int4-if"


@pytest.fixture(scope="module")
def made() -> Path:
    """A package that a browser can open one target of."""
    return package(NANO, ("onnx:int4@if", "gguf:q8_0"), "--last-logits", "--no-validate")


@pytest.fixture(scope="module")
def built(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with the package beside the page."""
    example = lay_out(tmp_path_factory.mktemp("example") / "web", EXAMPLE)
    place = example.parent / "site"
    named = example.parent / "nano"
    named.symlink_to(made)
    assert node(example / "build.mjs", place, named) == f"wrote {place}\n"
    return place


@pytest.fixture
def site(built: Path) -> Iterator[Site]:
    with serving(Site(built)) as up:
        yield up


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("browser") / "web", TESTS) / "session.mjs"


@pytest.fixture
def phone(session: Path, site: Site, tmp_path: Path) -> Iterator[Browser]:
    """The page on a narrow screen."""
    with browser(session, tmp_path / "profile", 360, "dark") as page:
        show(page, site)
        yield page


@pytest.fixture(scope="module")
def said(made: Path) -> str:
    """What follows `def main(` by our runtime with float activations, as in onnxruntime-web."""
    folder = made / FOLDER
    tokenizer = HfTokenizer(folder)
    ids = tokenizer.encode("def main(")
    return "".join(generate(exact(folder), tokenizer, ids, GREEDY, max_tokens=16).texts())


def show(page: Browser, site: Site) -> None:
    page.do("navigate", site.url)
    page.until(READY)


def press(page: Browser, name: str) -> None:
    """A button by its name; the list's buttons have that of the package in theirs."""
    found = f"[...document.querySelectorAll('button')].find((b) => b.innerText === {name!r})"
    page.js(f"{found}.click()")


def load(page: Browser) -> None:
    press(page, "Load")
    page.until(f"{STATUS} === 'ready'")


def write(page: Browser, prompt: str = "def main(", **values: object) -> str:
    for name, value in {"prompt": prompt, "temperature": 0, "count": 16, **values}.items():
        page.js(f"document.forms.write.elements[{name!r}].value = {json.dumps(value)}")
    press(page, "Write")
    page.until(f"{STATUS}.startsWith('done') || {ERROR}")
    return str(page.js(f"{ERROR} || {TEXT}"))


def refused(page: Browser, says: str) -> None:
    page.until(f"{ERROR}.includes({says!r})")


def test_it_loads_writes_and_opens_again_without_a_network(
    session: Path, built: Path, said: str, tmp_path: Path
) -> None:
    site = Site(built)
    for width, scheme in ((360, "dark"), (1200, "light")):
        with browser(session, tmp_path / scheme, width, scheme) as page:
            with serving(site):
                show(page, site)
                assert page.js(LIST) == ["nano · onnx:int4@if14.4 MB, to be loaded once"]
                load(page)
                assert write(page) == said
                shown = page.js("document.getElementById('speed').textContent")
                assert re.match(r"16 tokens at [\d.]+ tok/s, 3 read, the first after", shown)
                page.do("screenshot", str(tmp_path / f"{width}.png"))
                assert page.js("document.documentElement.scrollWidth") == width
            show(page, site)  # nothing answers now
            assert page.js("crossOriginIsolated")  # by the service worker: threads
            press(page, "Open")
            page.until(f"{STATUS} === 'ready'")
            assert write(page) == said and page.js(ERROR) == ""


def test_an_interrupted_load_goes_on_where_it_was(phone: Browser, site: Site, said: str) -> None:
    site.cut, site.cuts = 3_000_000, 2
    load(phone)  # two breaks are nothing that one has to hear of
    data = [asked for path, asked in site.asked if path.endswith("model.onnx.data")]
    assert data == [None, "bytes=3000000-", "bytes=6000000-"]
    assert write(phone) == said


def test_a_paused_load_goes_on_after_the_page_was_closed(
    session: Path, site: Site, said: str, tmp_path: Path
) -> None:
    with browser(session, tmp_path, 360) as page:
        show(page, site)
        site.slow = 0.02
        press(page, "Load")
        page.until("document.getElementById('bar').value > 0.3")
        press(page, "Pause")
        page.until(f"{STATUS}.startsWith('paused')")
        assert page.js(ERROR) == ""
    site.slow, site.asked = 0, []
    with browser(session, tmp_path, 360) as page:
        show(page, site)
        load(page)
        (asked,) = [asked for path, asked in site.asked if path.endswith("model.onnx.data")]
        assert asked is not None and int(asked[6:-1]) > 2_000_000
        assert write(page) == said


def test_a_server_without_ranges_sends_it_all_again(phone: Browser, site: Site, said: str) -> None:
    site.ranges, site.cut, site.cuts = False, 3_000_000, 1
    load(phone)
    assert write(phone) == said


def test_a_server_that_stays_away_is_told(phone: Browser, site: Site) -> None:
    site.down = True
    press(phone, "Load")
    refused(phone, "What was loaded is kept: press Load to go on")


def test_files_can_be_picked(phone: Browser, made: Path, site: Site, said: str) -> None:
    press(phone, "Load")
    phone.until(f"{STATUS} === 'ready'")
    phone.js("window.confirm = () => true")
    press(phone, "Remove")
    phone.until(f"{LIST}[0].endsWith('to be loaded once')")
    files = [made / "manifest.json", *sorted((made / FOLDER).iterdir())]
    phone.pick("document.getElementById('files')", files)
    phone.until(f"{LIST}[0].endsWith('picked files')")
    site.asked = []
    load(phone)
    assert write(phone) == said
    assert not [path for path, _ in site.asked if "/packages/" in path]
    phone.pick("document.getElementById('files')", files[1:])
    refused(phone, "manifest.json is not among the picked files")


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


def test_settings_and_stop(phone: Browser, said: str) -> None:
    load(phone)
    first = write(phone, temperature=0.7, seed=5)
    assert write(phone, temperature=0.7, seed=5) == first != said
    assert write(phone, temperature=0.7, seed=6) != first
    assert write(phone, temperature=0, seed=6) == said
    phone.js("document.forms.write.elements.count.value = 900")
    press(phone, "Write")
    phone.until(f"{TEXT}.length > 20")
    press(phone, "Stop")
    phone.until(f"{STATUS} === 'stopped'", seconds=5)
    assert write(phone) == said
    phone.js("document.forms.write.elements.count.value = 900")
    press(phone, "Write")
    phone.until(f"{TEXT}.length > 20")
    phone.js("window.confirm = () => true")
    press(phone, "Remove")  # while it writes
    phone.until(f"{LIST}[0].endsWith('to be loaded once')")
    load(phone)
    assert write(phone) == said
    said = write(phone, "word " * 1100)
    assert re.search(r"has \d+ tokens and the model's context 1024: shorten it", said)


def test_keyboard_and_screen_reader(phone: Browser) -> None:
    load(phone)
    phone.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tree = phone.do("call", ["Accessibility.getFullAXTree", {}])["nodes"]
    kinds = ("button", "textbox", "spinbutton", "progressbar", "region")
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in kinds
    ]
    assert len(found) > 8 and all(name for _, name in found), found
    assert ("button", "Remove nano onnx:int4@if") in found
    reached = []
    phone.js("document.activeElement.blur()")
    for _ in range(16):
        for kind in ("keyDown", "keyUp"):
            press_tab = {"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
            phone.do("call", ["Input.dispatchKeyEvent", press_tab])
        reached.append(phone.js("document.activeElement.id"))
    order = ["url", "folder", "files", "prompt", "go", "out"]
    assert [name for name in reached if name in order][:6] == order


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
