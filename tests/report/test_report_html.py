"""The report's page: figures, escaping, missing parts, how it is written."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.target_entry import TargetEntry
from emo_export.files.verifying import Problem
from emo_export.parity.result import Crash, NotCompared, Refusal, Result
from emo_export.report.html import page as report_html
from emo_export.report.html import words as report_words
from emo_export.report.html.page import check_writable, html, write_html
from emo_export.report.html.view import MOST_SAMPLES, thinned
from emo_export.spec import GGUF, Spec
from tests.kit.report_pages import (
    MANIFEST,
    WHEN,
    Page,
    check_figures,
    released_shape,
    result_on,
    within_limits,
)
from tests.parity.test_by_position import report, with_domains
from tests.parity.test_parity import small_golden


def page(reports: Sequence[Result], **changes: Any) -> Page:
    arguments = {"golden": with_domains(), "manifest": MANIFEST, "when": WHEN} | changes
    text = html(reports, Path("some/package"), **arguments)
    made = Page(text)
    check_document(made, text)
    return made


def check_document(made: Page, text: str) -> None:
    """What holds of every page: no network, headings in order, words beside every picture."""
    assert "<script" not in text and "@import" not in text and "@font-face" not in text
    assert {name for name, _ in made.tags} & {"img", "link", "iframe", "script"} == set()
    links = [
        value for _, found in made.tags for key, value in found.items() if key in ("src", "href")
    ]
    assert links == [] and text.count("url(") == text.count("url(#")
    csp = [m["content"] for m in made.of("meta") if "http-equiv" in m]
    assert csp == ["default-src 'none'; style-src 'unsafe-inline'"]
    levels = [int(name[1]) for name, _ in made.tags if name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for svg in made.of("svg"):
        named = svg.get("role") == "img" and len(svg["aria-label"] or "") > 20
        assert named or svg.get("aria-hidden") == "true"
    assert all("scope" in th for th in made.of("th"))
    ids = [found["id"] for _, found in made.tags if "id" in found]
    assert len(set(ids)) == len(ids)
    assert all(found["aria-labelledby"] in ids for found in made.of("section"))


def passing() -> Result:
    return within_limits(result_on())


def test_a_pass_is_said_first() -> None:
    made = page([passing()])
    check_figures(made, [passing()])
    assert "PASS. gguf:q4_0 stays within its limits on pi4." in " ".join(made.text.split())
    assert "FAIL" not in made.text and "14.2 MB" in made.text
    assert "Cortex-A72" in made.text and "emo-export validate out --device pi4" in made.text
    assert "emo-export, which pruned nothing here" in made.text


def test_failures_are_sentences() -> None:
    reports = [result_on(), passing(), result_on("pi5", refusal=Refusal("4 GB are too few", 1))]
    made = page(reports)
    check_figures(made, reports)
    text = " ".join(made.text.split())
    assert "FAIL. 2 of 3 checks failed: gguf:q4_0 on pi4 and gguf:q4_0 on pi5." in text
    assert "gguf:q4_0 on pi5: 4 GB are too few" in text
    first = "gguf:q4_0 on pi4: compared with the dequantised reference (as shipped, whole prompt): "
    assert first + "mean KL" in text and "is above the limit of 8e-03" in text


def test_a_crash_has_no_figures() -> None:
    crashed = result_on(rows=(), crash=Crash(4, "", ""), memory={"peak": 12_345_678})
    made = page([crashed])
    assert [key for key, _, _ in made.figures] == ["0.memory.peak"]
    assert "gguf:q4_0 on pi4: ended by SIGILL" in made.text
    assert "12,345,678" in made.text
    silent = page([replace(crashed, crash=None)])
    assert "the run ended without a result" in silent.text


def test_figures_that_are_not_finite() -> None:
    broken = result_on(rows=report(broken=True).rows)
    made = page([broken])
    check_figures(made, [broken])
    assert ("0.rows.2.perplexity_ratio", "null", "not finite") in made.figures
    assert "nan" not in made.text.lower()
    assert "mean KL is not finite, the limit is 1e-01" in made.text
    assert "perplexity ratio is not finite, so it is not within" in made.text


def test_parts_that_are_not_there() -> None:
    bare = tuple(replace(row, domains=()) for row in report().rows)
    for golden in (None, small_golden()):
        made = page([result_on(rows=bare)], golden=golden, manifest=None)
        assert made.text.count("Not recorded") == 2 and "no manifest.json" in made.text
    assert "not compared" in page([result_on(rows=bare[2:3])]).text  # with the original alone


def test_a_pruned_checkpoint_is_told() -> None:
    pruning = {"original_model": "big", "prune_keep_k": 32, "pruning_method": "easy-ep"}
    origin = replace(MANIFEST.origin, source=dict(MANIFEST.source) | {"pruning": pruning})
    manifest = replace(MANIFEST, origin=origin)
    text = page([passing()], manifest=manifest).text
    assert "pruned before the export (from big, 32 experts kept a layer, method easy-ep)" in text


def test_everything_is_escaped() -> None:
    evil = "<script>alert('x')</script>\"&"
    made = report()
    domains = tuple(replace(d, domain=evil + d.domain) for d in made.rows[2].domains)
    rows = (*made.rows[:2], replace(made.rows[2], domains=domains), *made.rows[3:])
    samples = [[0, 1e6, 1e6], [1, 2e6, 1e6]]
    facts = {evil: evil}
    hostile = replace(
        made,
        **{"target": evil, "device": evil, "kind": evil, "command": evil, "heldout_source": evil},
        **{"engine": facts, "machine": facts, "kernels": facts, "memory": facts},
        rows=rows,
        damage=(Problem(evil, "absent"),),
        not_compared=NotCompared("space", 1, evil),
        refusal=Refusal(evil, 1),
    )
    golden = replace(with_domains(), domains=(evil, "b"))
    manifest = replace(
        MANIFEST,
        origin=replace(MANIFEST.origin, tools={evil: evil}),
        targets={evil: TargetEntry(Spec(GGUF, evil), evil, {evil: evil})},
    )
    for memory in (hostile.memory, {"samples": samples, evil: [evil]}):
        found = page([replace(hostile, memory=memory)], golden=golden, manifest=manifest)
        assert found.of("script") == [] and evil in found.text


def test_a_table_for_each_device_and_format() -> None:
    reports, golden = released_shape()
    text = html(reports, Path("big"), golden, None, WHEN)
    assert len(text) < 1_000_000
    made = Page(text)
    check_document(made, text)
    check_figures(made, reports)
    assert "pass" in made.text and "server-arm" in made.text
    heat = [table for table in made.tables if table[0][-1][1] == "127"]
    assert len(heat) == 6 and all(len(table) == 17 and len(table[1]) == 129 for table in heat)
    tokens = int((golden.heldout_ids[0] >= 0).sum())
    for table, counts in zip(heat, golden.usage, strict=True):
        for line, row in zip(table[1:], counts.tolist(), strict=True):
            for (_, cell), count in zip(line[1:], row, strict=True):
                shown = -1 if cell == "–" else float(cell)
                assert math.isclose(shown, 100 * count / tokens if count >= 0 else -1, rel_tol=6e-3)


def test_memory_over_time_keeps_the_peak() -> None:
    samples = [(i * 0.1, 1e6 * (i % 97), 2e6) for i in range(5000)]
    kept = thinned(samples)
    assert len(kept) <= MOST_SAMPLES and max(kept, key=lambda s: s[1])[1] == 96e6
    assert thinned(samples[:7]) == samples[:7] and thinned([]) == []
    made = page([result_on(memory={"samples": [list(s) for s in samples]})])
    assert "anonymous memory at most 96.0 MB (at" in made.text and "Limit:" not in made.text
    cap = {"limit": 10**9, "enforced": True, "how": "cgroup v2", "peak_anonymous": 97_500_000}
    text = page([result_on(memory={"samples": [[0, 1e6, 1e6], [1, 2e6, 1e6]]} | cap)]).text
    assert "anonymous memory at most 97.5 MB, file-backed at most 1.0 MB (at 0.0 s)." in text
    assert "Limit: 1.00 GB, enforced." in text and "97,500,000" in text and "cgroup v2" in text
    with pytest.raises(EmoExportError, match=r"memory of gguf:q4_0 on pi4: samples are not"):
        page([result_on(memory={"samples": [[1, 2]]})])


def test_writing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(path, [passing()], package=tmp_path, when=WHEN)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    link = tmp_path / "link.html"
    link.symlink_to(path)
    write_html(link, [result_on()], package=tmp_path, when=WHEN)
    assert link.is_symlink() and "FAIL" in path.read_text("utf-8")
    name = os.fsdecode(b"caf\xe9")  # a folder's name need not be UTF-8
    write_html(path, [passing()], package=tmp_path / name, when=WHEN)
    assert Page(path.read_text("utf-8")).text


def test_an_interrupted_page_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_html(path, [passing()], package=tmp_path, when=WHEN)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for path, match in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.html", "there is no folder"),
        (tmp_path / "file" / "x.html", "there is no folder"),
        (Path("/proc/x.html"), "cannot be written"),
    ):
        with pytest.raises(EmoExportError, match=match):
            check_writable(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs jinja2: pip install .*\[report\]"):
        report_html.check_writable(tmp_path / "x.html")


def test_words() -> None:
    assert (
        report_words.joined(["a"]) == "a" and report_words.joined(["a", "b", "c"]) == "a, b and c"
    )
    assert report_words.number(0.00123456) == "0.00123" and report_words.number(1e-7) == "1.00e-07"
    assert report_words.number(math.inf) == report_words.number(None) == "not finite"
    assert report_words.change(-0.01234) == "−1.23%"
    many = [result_on(f"d{i}") for i in range(7)]
    assert report_words.verdict(many).endswith("d0, gguf:q4_0 on d1, gguf:q4_0 on d2 and 4 more.")
    text = report_words.about_lines("KL", {"a": [1.0, 3.0], "b": [9.0, math.nan]}, " nats")
    assert "Highest on average: b, 9 nats (at most 9 nats, at position 1)" in text
    assert text.endswith("Not finite somewhere: b.")
