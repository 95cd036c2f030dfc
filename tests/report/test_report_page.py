"""Slow: the report's page in headless Chromium, on a phone and on a desk, light and dark."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emo_export.parity.golden import Golden
from emo_export.parity.result import Crash, Result
from emo_export.report.html.page import write_html
from emo_export.runtimes.devices.options import DeviceOptions
from emo_export.validating import validate_there
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.paths import GOLDEN
from tests.kit.report_pages import MANIFEST, WHEN, check_figures, released_shape, result_on
from tests.kit.web_tools import IN_CHROMIUM, TESTS, lay_out, node
from tests.parity.test_by_position import report, with_domains

pytestmark = IN_CHROMIUM

VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]

# The contrast of each piece of text with the nearest background behind it, by WCAG 2's formula;
# what stands outside of the page's width and in no box that scrolls; the figures as they are shown.
LOOK = """(() => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            const alpha = numbers(colour)[3] ?? 1;
            if (alpha === 1) return colour;
            if (alpha !== 0) throw new Error("a background that shines through");
        }
        throw new Error("no background");
    };
    const contrasts = [];
    const small = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const [text, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
        const box = element.getBoundingClientRect();
        if (!text || !box.width) continue;
        const style = getComputedStyle(element);
        const front = luminance(element.closest("svg") ? style.fill : style.color);
        const back = luminance(behind(element));
        const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        contrasts.push([Math.round(ratio * 100) / 100, text.slice(0, 30)]);
        const svg = element.closest("svg");
        const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        if (parseFloat(style.fontSize) * scale < 9.5) small.add(text.slice(0, 30));
    }
    const edge = document.documentElement.clientWidth + 0.5;
    const outside = [...document.querySelectorAll("body *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.right > edge && !element.closest(".scroll, svg");
    });
    const figures = [...document.querySelectorAll("data")];
    return {
        width: innerWidth,
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        contrasts: contrasts.sort((a, b) => a[0] - b[0]).slice(0, 5),
        texts: contrasts.length,
        small: [...small],
        outside: outside.map((element) => element.outerHTML.slice(0, 80)),
        figures: figures.map((f) => [f.dataset.key, f.value, f.textContent]),
        lists: [...document.querySelectorAll("[data-list]")].map((head) => {
            const columns = [...head.parentElement.children];
            const rows = [...head.closest("table").tBodies[0].rows];
            const at = 1 + columns.indexOf(head);
            return [head.dataset.list, rows.map((row) => row.cells[at].textContent)];
        }),
        background: getComputedStyle(document.body).backgroundColor,
        shown: [...document.querySelectorAll("svg[role=img]")].map((svg) => {
            const { width, height } = svg.getBoundingClientRect();
            return width > 200 && height > 40;
        }),
    };
})()"""


class Shown:
    """The figures that a browser found, with the interface of tests.kit.report_pages.Page."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.figures = [tuple(figure) for figure in value["figures"]]
        self._lists = {key: cells for key, cells in value["lists"]}

    def lists(self) -> dict[str, list[str]]:
        return self._lists


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("browser") / "web", TESTS) / "report.mjs"


def look(browser: Path, page: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What the page is like in each of VIEWS."""
    views = [{"width": w, "scheme": s, "expression": LOOK, "screenshot": None} for w, s in VIEWS]
    (tmp_path / "views.json").write_text(json.dumps(views))
    # As in test_web_page.
    settings = {"TMPDIR": str(browser.parent), "AWS_LAMBDA_JS_RUNTIME": "nodejs24.x"}
    arguments = (tmp_path / "profile", page.as_uri(), tmp_path / "views.json")
    found: list[dict[str, Any]] = json.loads(node(browser, *arguments, settings=settings))
    return found


def failed() -> tuple[list[Result], Golden]:
    """A failure, a crash and an engine that is not finite."""
    memory = {"limit": 60_000_000, "samples": [[i * 0.1, 1e6 * (5 + i), 8e6] for i in range(50)]}
    reports = [result_on(memory=memory), result_on("phone", rows=report(broken=True).rows)]
    crashed = result_on("pi5", rows=(), crash=Crash(4, "", ""))
    return [*reports, crashed], with_domains()


def exported() -> tuple[list[Result], Golden]:
    """What `export` measured and wrote to parity.json."""
    folder = package(GOLDEN / "base", SMALL_TARGETS)
    stored = json.loads((folder / "parity.json").read_text("utf-8"))["targets"]
    judged = [Result.from_dict(target) for target in stored]
    assert [made.as_dict() for made in judged] == stored and len(stored) == 2
    return judged, Golden.load(folder / "golden.npz")


def run_here() -> tuple[list[Result], Golden]:
    """A real run in a process of its own: in enough memory, and in less than weights and heap."""
    folder = package(GOLDEN / "base", SMALL_TARGETS)
    reports = []
    for ram in (2 * 10**9, 30 * 10**6):
        asked = DeviceOptions(("here",), ram, 256)
        reports += validate_there(folder, ["gguf:f32"], asked)
    enough, little = reports
    assert enough.passed and not little.passed and little.memory is not None
    little = replace(little, device="here, 30 MB")
    return [enough, little], Golden.load(folder / "golden.npz")


@pytest.mark.parametrize("made", [failed, exported, run_here, released_shape])
def test_the_page_in_a_browser(
    browser: Path, made: Callable[[], tuple[list[Result], Golden]], tmp_path: Path
) -> None:
    reports, golden = made()
    page = tmp_path / "report.html"
    write_html(page, reports, package=Path("a" * 70), golden=golden, manifest=MANIFEST, when=WHEN)
    answers = look(browser, page, tmp_path)
    assert len(answers) == len(VIEWS)
    for (width, scheme), answer in zip(VIEWS, answers, strict=True):
        value = answer["value"]
        assert answer["said"] == [] and answer["requests"] == [page.as_uri()]
        assert value["width"] == width and value["overflow"] == 0 and value["outside"] == []
        assert value["texts"] > 200 and value["contrasts"][0][0] >= 4.5, (
            scheme,
            value["contrasts"],
        )
        assert value["small"] == [], (width, scheme)
        assert value["shown"] and all(value["shown"])
        light = sum(map(int, value["background"][4:-1].split(","))) > 3 * 128
        assert light == (scheme == "light")
        check_figures(Shown(value), reports)
