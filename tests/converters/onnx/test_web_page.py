"""Slow: the page of examples/web in headless Chromium, as a reader uses it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.kit.browsing import Browser, Site, browser, serving
from tests.kit.web_page import (
    ERROR,
    FOLDER,
    LIST,
    STATUS,
    TEXT,
    load,
    press,
    refused,
    show,
    write,
)
from tests.kit.web_tools import IN_CHROMIUM

pytestmark = IN_CHROMIUM


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
