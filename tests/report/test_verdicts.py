"""The third verdict, as each place that shows a verdict tells it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from emo_export.card import _parity_line, _verdict
from emo_export.errors import EmoExportError, NotEnoughTextError, ParityError
from emo_export.parity.estimates import SEQUENCES, TOKENS, Interval, share_interval
from emo_export.parity.result import Crash, Doubt, Failure, Refusal, Result, as_json, worst
from emo_export.report.junit import junit_xml
from emo_export.report.sentences import check, faults
from emo_export.report.text import show
from tests.kit.junit_schema import check_junit
from tests.kit.report_pages import Page, check_figures, result_on
from tests.report.test_junit import cases, on_pi, report
from tests.report.test_report_html import page

INTERVALS = {
    "kl_mean": Interval(0.0021, 0.0039, 288, TOKENS),
    "perplexity_ratio": Interval(0.99, 1.0182, 4074, SEQUENCES),
}


def untold(enough: int = 5123) -> Result:
    """Within every limit but one, which its interval reaches across."""
    made = report()
    doubts = (Doubt("perplexity_ratio", 1.004, 1.005, 4074, enough),)
    limits = {**made.rows[1].limits, "perplexity_ratio": 1.005}
    row = replace(made.rows[1], limits=limits, doubts=doubts, intervals=INTERVALS)
    return replace(made, rows=(made.rows[0], row))


def test_exit_codes() -> None:
    assert (report().exit_code, untold().exit_code) == (0, 4)
    assert not untold().passed and untold().verdict == "not enough text"
    failed = replace(untold(), crash=Crash(4, "", ""))
    assert (failed.exit_code, failed.verdict) == (1, "FAIL")
    assert replace(untold(), refusal=Refusal("no speed", 3)).exit_code == 3
    assert worst([report(), untold()]) == "not enough text" == as_json([untold()])["verdict"]
    assert worst([untold(), failed, report()]) == "FAIL" and worst([report()]) == "pass"


def test_the_error_says_what_would_do() -> None:
    with pytest.raises(NotEnoughTextError) as stop:
        check([report(), untold()])
    assert str(stop.value).splitlines()[0] == (
        "onnx:int4: compared with the float original (as shipped, whole prompt): not enough text "
        "to judge perplexity ratio: 1.0040 is between 0.9900 and 1.0182 (95%), the limit is 1.005; "
        "4074 tokens were scored, about 5200 would do"
    )
    assert "--heldout-tokens" in str(stop.value)
    bad = report(0.02, (Failure("kl_mean", 0.02, 0.005),))
    with pytest.raises(ParityError, match="failed: onnx:int4\n"):
        check([untold(), bad])
    assert "more than 100 times as many would do" in faults(untold(10**6))[0]
    few = replace(untold().rows[1], doubts=(Doubt("top1", 1.0, 0.8, 1, 0),))
    assert "at least two positions" in faults(replace(untold(), rows=(few,)))[0]


def test_the_terminal_shows_interval_and_verdict_in_80_columns() -> None:
    for device, kind in (("here", "here"), ("pi4", "emulated")):
        text = io.StringIO()
        show([replace(untold(), device=device, kind=kind)], Console(file=text, width=80))
        shown = " ".join(text.getvalue().split())
        assert "perplexity ratio 1.0040 (0.9900 to 1.0182, by sequence)" in shown
        assert "mean KL 1.00e-04 (2.10e-03 to 3.90e-03)" in shown
        assert "not enough" in text.getvalue() and "1.0040" in shown
        assert "…" not in text.getvalue()


def test_json_is_read_back_and_checked() -> None:
    content = json.loads(json.dumps(untold().as_dict()))
    assert content["verdict"] == "not enough text" and content["passed"] is False
    assert content["rows"][1]["intervals"]["perplexity_ratio"]["independent"] == "sequences"
    assert Result.from_dict(content) == untold()
    with pytest.raises(EmoExportError, match="verdict is 'FAIL'"):
        Result.from_dict({**content, "verdict": "FAIL"})


def test_the_page() -> None:
    short = replace(untold(), device="pi4", kind="emulated", target="onnx:int8")
    made = page([short])
    check_figures(made, [short])
    text = words(made)
    assert "? NOT ENOUGH TEXT. Too little text to judge onnx:int8 on pi4." in text
    assert "0.9900 to 1.0182, by sequence" in text and "about 5200 would do" in text
    both = words(page([short, result_on("pi5")]))
    assert "✗ FAIL. 1 of 2 checks failed: gguf:q4_0 on pi5. Too little text to judge" in both


def words(made: Page) -> str:
    return " ".join(made.text.split())


def test_the_card() -> None:
    assert _verdict([untold()]).startswith("**Not enough text to judge onnx:int4.")
    line = _parity_line("onnx:int4", untold().rows[1])
    assert line.endswith("| 1.0040 (0.9900 to 1.0182, by sequence) | not enough text |")


def test_too_little_text_is_skipped_not_failed_nor_passed() -> None:
    one = untold()
    content = junit_xml([on_pi(one)], "mine")
    case = cases(content)["mine.pi4.onnx:int4", "against original, shipped arithmetic, prefill"]
    assert case is not None and case.tag == "skipped"
    assert (case.get("message") or "").startswith("not enough text to judge perplexity ratio: 1.00")
    (suite,) = check_junit(content)
    assert (suite.get("skipped"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    out = suite.findtext("system-out") or ""
    assert "onnx:int4: not enough text; " in out and "1.0040 (0.9900 to 1.0182, by sequence)" in out
    failed = replace(one.rows[1], failures=(Failure("kl_mean", 0.2, 0.1),))
    content = junit_xml([on_pi(replace(one, rows=(failed,)))], "mine")
    (wrong,) = [x for x in cases(content).values() if x is not None]
    assert wrong.tag == "failure" and "not enough text to judge" in (wrong.text or "")


def test_the_row_of_a_device_has_the_figure_that_decided_in_80_columns() -> None:
    top1 = Doubt("top1", 7 / 9, 0.85, 9, 120)
    few = replace(report().rows[0], doubts=(top1,), intervals={"top1": share_interval(7, 9)})
    results = [
        replace(made, device="server-arm", kind="emulated")
        for made in (
            report(),
            replace(report(), rows=(few, report().rows[1])),
            report(0.02, (Failure("kl_mean", 0.02, 0.005),)),
        )
    ]
    text = io.StringIO()
    show(results, Console(file=text, width=80))
    rows = [line for line in text.getvalue().splitlines() if line.startswith("server-arm  ")]
    assert len(rows) == 3 and max(map(len, rows)) <= 80
    assert "   not enough text   top-1 stored 77.8% ~ 85%" in rows[1], rows
    assert "   FAIL              KL stored 2.0e-02 > 5e-03" in rows[2], rows
    assert "   pass   " in rows[0] and ">" not in rows[0]
    assert "(~: " in text.getvalue()


def test_figures_that_a_narrow_terminal_has_no_room_for_are_left_out() -> None:
    for width, figures in ((120, 8), (80, 5), (60, 3), (40, 0)):
        text = io.StringIO()
        show(
            [replace(report(), device="server-arm", kind="emulated")],
            Console(file=text, width=width),
        )
        row = next(line for line in text.getvalue().splitlines() if line.startswith("server-arm"))
        assert row.split()[:3] == ["server-arm", "onnx:int4", "pass"]
        assert len(row.split()) == 3 + figures and len(row) <= width, row
