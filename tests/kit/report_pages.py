"""Reports to make pages of, and a reader of the page that knows nothing of how it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np

from emo_export.files.manifest import FileEntry, Manifest, Origin
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.by_position import ByPosition, DomainFigures
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result
from emo_export.spec import GGUF, Spec
from tests.parity.test_by_position import report, with_domains

WHEN = datetime(2026, 5, 7, 12, 0, tzinfo=UTC)
VOID = {"meta", "br", "hr", "img", "input", "link"}
NAN = float("nan")
DOMAINS = ("c", "dictionary", "man", "perldoc", "python", "scripture")
MANIFEST = Manifest(
    Origin({"name": "emo", "pruning": None}, {"emo-export": "0.1.0", "torch": "2"}),
    {"gguf:q4_0": TargetEntry(Spec(GGUF, "q4_0"), "model-Q4_0.gguf", {"embed": "q8_0"})},
    (FileEntry("model-Q4_0.gguf", 14_203_936, "0" * 64),),
)


def result_on(device: str = "pi4", **changes: Any) -> Result:
    """One target of an engine that is wrong on purpose, on an emulated device."""
    made = replace(
        report(),
        device=device,
        kind="emulated",
        machine={"CPU": "Cortex-A72", "CPU features": "fp asimd crc32"},
        command=f"emo-export validate out --device {device}",
    )
    return replace(made, **changes)


def within_limits(made: Result) -> Result:
    """The same figures, judged leniently."""
    return replace(made, rows=tuple(replace(row, failures=(), doubts=()) for row in made.rows))


def large(positions: int, domains: Sequence[str], rng: np.random.Generator) -> Result:
    """A report with that many positions and domains."""
    made = within_limits(report())

    def some(low: float, high: float) -> tuple[float, ...]:
        return tuple(float(f"{v:.6g}") for v in 10 ** rng.uniform(low, high, positions))

    figures = tuple(
        DomainFigures(name, 600, 30.0 + i, 1 + 0.003 * rng.standard_normal())
        for i, name in enumerate(domains)
    )
    rows = tuple(
        replace(
            row,
            positions=ByPosition(some(-5, -2), some(-3, -1), some(-2, 0), some(-0.1, 0)),
            domains=figures if row.against == "original" else (),
        )
        for row in made.rows
    )
    return replace(made, rows=rows)


def released_shape() -> tuple[list[Result], Golden]:
    """Four targets on four devices with memory over time; 16 layers of 128 experts, 6 domains."""
    rng = np.random.default_rng(3)
    samples = [[i * 0.1, 2e9 + 1e6 * i, 5e8] for i in range(500)]
    memory = {"anonymous": 2_050_000_000, "limit": 4_000_000_000, "samples": samples}
    reports = []
    for device in ("pi4", "pi5", "phone", "server-arm"):
        for target in ("onnx:int4", "onnx:int8", "gguf:q4_0", "gguf:q8_0"):
            rows = large(48, DOMAINS, rng).rows
            reports.append(result_on(device, target=target, rows=rows, memory=memory))
    usage = np.minimum(rng.poisson(rng.gamma(0.5, 60, (len(DOMAINS), 16, 128))), 400)
    usage[:, :, 127] = -1
    small = with_domains()
    rows = np.tile(small.heldout_ids[:1], (len(DOMAINS), 100))
    return reports, replace(small, heldout_ids=rows, domains=DOMAINS, usage=usage)


class Page(HTMLParser):
    """What a page holds; raises AssertionError when its tags are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.figures: list[tuple[str, str, str]] = []  # key, value, text
        self.tables: list[list[list[tuple[Mapping[str, str | None], str]]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((found, ""))
        elif tag == "data":
            self.figures.append((found["data-key"] or "", found["value"] or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self._open, f"<{tag}/> outside of an svg"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            attributes, before = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = attributes, before + data
        if "data" in self._open:
            key, value, before = self.figures[-1]
            self.figures[-1] = key, value, before + data

    def of(self, tag: str) -> list[Mapping[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def lists(self) -> dict[str, list[str]]:
        """The tables by position: the path of a list in the JSON -> its cells."""
        found = {}
        for table in self.tables:
            heads = [attributes for attributes, _ in table[1] if "data-list" in attributes]
            for column, attributes in enumerate(heads):
                found[attributes["data-list"] or ""] = [row[1 + column][1] for row in table[2:]]
        return found


def at(content: Any, path: str) -> Any:
    """`0.rows.2.perplexity` in parsed JSON."""
    for step in path.split("."):
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def check_figures(page: Page, reports: Sequence[Result]) -> None:
    """Every figure of the page is the JSON's, and every figure of every row is in the page."""
    check_written(page, json.loads(json.dumps([made.as_dict() for made in reports])))


def check_written(page: Page, content: Sequence[Mapping[str, Any]]) -> None:
    """As check_figures, of reports as `--json` prints them."""
    for key, value, text in page.figures:
        assert json.loads(value) == at(content, key), key
        close_to(text, at(content, key))
    shown = {key for key, _, _ in page.figures}
    lists = page.lists()
    for index, made in enumerate(content):
        for number, row in enumerate(made["rows"]):
            place = f"{index}.rows.{number}"
            assert {f"{place}.measured.{k}" for k in row["measured"] if "ties_kl" not in k} <= shown
            if row["against"] == "original":
                assert {f"{place}.perplexity_ratio", f"{place}.limits.kl_mean"} <= shown
                assert {
                    f"{place}.domains.{i}.perplexity" for i in range(len(row["domains"]))
                } <= shown
                assert f"{place}.positions.kl_mean" in lists
        shown_of_device(index, made, shown)
    for key, cells in lists.items():
        assert [json.loads(cell) for cell in cells] == at(content, key)


def shown_of_device(index: int, made: Mapping[str, Any], shown: set[str]) -> None:
    """What a run takes and how fast it is stands in the page."""
    memory, speed = made["memory"] or {}, made["speed"] or {}
    if "needs" in memory:
        names = ("anonymous", "weights_mapped", "libraries", "total")
        names = names if memory["needs"]["measured"] else ("cache", "least")
        assert {f"{index}.memory.needs.{name}" for name in names} <= shown
    sampled = [key for key in memory if key.startswith("peak") and memory[key] is not None]
    assert {f"{index}.memory.{key}" for key in sampled} <= shown
    told = [key for key in speed if key.endswith(("_per_second", "_seconds"))]
    assert {f"{index}.speed.{key}" for key in told} <= shown


def close_to(text: str, value: float | None) -> None:
    """What a person reads is the value, rounded."""
    if value is None:
        assert text == "not finite"
        return
    number, _, unit = text.replace(",", "").replace("%", " %").partition(" ")
    read = float(number) * {"%": 0.01, "MB": 1e6, "GB": 1e9, "": 1}[unit]
    if unit == "MB":
        assert abs(read - value) <= 0.05e6, (text, value)
        return
    assert math.isclose(read, value, rel_tol=6e-3, abs_tol=6e-4), (text, value)
