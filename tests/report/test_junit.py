"""JUnit XML: the schema of its readers, stable names, figures beside limits, whole files."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emo_export.base.disk import check_writable, write_whole
from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.parity.by_position import ByPosition
from emo_export.parity.golden import Measured
from emo_export.parity.result import Crash, Failure, Refusal, Result, Row, TokenizerFailure
from emo_export.report.junit import junit_xml
from tests.kit.command import Emo
from tests.kit.junit_schema import check_junit
from tests.kit.without import without

LIMITS = {"kl_mean": 0.005, "top1": 0.85, "tie": 0.01}
AT = ByPosition((), (), (), ())
BROKEN = (Failure("kl_mean", math.nan, 0.005),)
LARGE = Refusal("needs 900 MB, --ram is 512 MB", 1)


def report(kl: float = 1e-4, failures: tuple[Failure, ...] = ()) -> Result:
    measured = Measured(288, kl, 10 * kl, 0.97, 0.5, 30, 2 * kl)
    rows = (
        Row("dequantised", "shipped", "prefill", measured, LIMITS, AT, failures=failures),
        Row("original", "shipped", "prefill", measured, LIMITS, AT, 31.5, 1.004),
    )
    engine = {"version": "onnxruntime 1.31.1", "threads": "1"}
    return Result(
        target="onnx:int4",
        engine=engine,
        rows=rows,
        greedy_steps=24,
        experts_used=84,
        experts_routed=93,
        heldout_tokens=4074,
        heldout_source="c.jsonl",
    )


def on_pi(judged: Result, **changes: Any) -> Result:
    made = replace(
        judged,
        device="pi4",
        kind="emulated",
        machine={"cpu": "cortex-a72", "hwcap": "fp asimd crc32"},
        memory={"peak": 123456, "enforced": False, "samples": [[0.5, 1, 2]]},
        command="emo-export validate mine --device pi4",
    )
    return replace(made, **changes)


def cases(content: bytes) -> dict[tuple[str, str], ET.Element | None]:
    """(class, name) -> what is wrong, or None."""
    root = check_junit(content)
    return {
        (case.attrib["classname"], case.attrib["name"]): next(iter(case), None)
        for case in root.iter("testcase")
    }


def test_a_pass_has_facts_a_table_and_no_time() -> None:
    content = junit_xml([on_pi(report())], "mine")
    assert set(cases(content).values()) == {None}
    (suite,) = check_junit(content)
    facts = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert facts["machine.hwcap"] == "fp asimd crc32" and facts["memory.peak"] == "123456"
    assert facts["engine.version"] == "onnxruntime 1.31.1" and facts["command"].endswith("pi4")
    assert "memory.samples" not in facts
    out = suite.findtext("system-out") or ""
    assert "1.0e-04" in out and "onnx:int4: pass" in out
    assert all("time" not in element.attrib for element in check_junit(content).iter())


def test_memory_and_speed_are_flat_properties() -> None:
    names = ("total", "cache", "context", "anonymous", "weights_mapped", "libraries")
    needs = dict.fromkeys(names, 71) | {"holds": True, "base": None}
    memory = {"needs": needs, "held_by": ["1 GB", "2 GB"]}
    rates = {"prefill_tokens_per_second": 9.0, "decode_tokens_per_second": 4.5}
    speed = {**rates, "decode_rounds": [4.0, 4.5], "memory": {"file": 2}}
    made = replace(on_pi(report()), memory=memory, speed=speed, repeat="again")
    (suite,) = check_junit(junit_xml([made], "mine"))
    facts = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert facts["memory.needs.total"] == "71" and facts["memory.needs.holds"] == "True"
    assert facts["memory.held_by"] == "1 GB, 2 GB" and "memory.needs.base" not in facts
    assert facts["speed.decode_tokens_per_second"] == "4.5" and facts["repeat"] == "again"
    assert "decode 4.5 tok/s" in (suite.findtext("system-out") or "")
    assert facts["speed.decode_rounds"] == "4.0, 4.5" and facts["speed.memory.file"] == "2"


def test_a_limit_that_is_exceeded_is_a_failure_with_limit_and_figure() -> None:
    bad = report(0.02, (Failure("kl_mean", 0.02, 0.005), Failure("top1", 0.8, 0.85)))
    found = cases(junit_xml([on_pi(bad)], "mine"))
    wrong = found["mine.pi4.onnx:int4", "against dequantised, shipped arithmetic, prefill"]
    assert wrong is not None and wrong.tag == "failure"
    assert wrong.get("message") == "mean KL 2.00e-02 is above the limit of 5e-03"
    assert wrong.text is not None and "top-1 80.00% is below the limit of 85%" in wrong.text
    assert "mean KL 2.000e-02" in wrong.text and "kl_mean 0.005" in wrong.text
    assert sum(element is not None for element in found.values()) == 1


def test_names_do_not_change_with_the_figures() -> None:
    good, bad = on_pi(report(1e-4)), on_pi(report(math.nan, BROKEN), refusal=LARGE)
    assert cases(junit_xml([good], "mine")).keys() == cases(junit_xml([bad], "mine")).keys()


def test_a_crash_is_an_error_and_other_failures_are_failures() -> None:
    gone = cases(junit_xml([on_pi(report(), rows=(), crash=Crash(4, "ort", ""))], "mine"))
    (error,) = gone.values()
    assert error is not None and error.tag == "error"
    assert (error.get("message") or "").startswith("ended by SIGILL: ort ran")
    large = cases(junit_xml([on_pi(report(), refusal=LARGE)], "mine"))
    failure = large["mine.pi4.onnx:int4", "run"]
    assert failure is not None and failure.tag == "failure"
    ids = replace(report(), tokenizer=TokenizerFailure(None, (7,)))
    assert cases(junit_xml([on_pi(ids)], "mine"))["mine.pi4.onnx:int4", "tokenizer"] is not None


def test_what_xml_has_no_place_for_is_spelled_out() -> None:
    text = "\x1b[31mred\x00\x0b <&>\"' ]]> \udcff \ufffe é 𝄞\ttab"
    odd = on_pi(report(), rows=(), refusal=Refusal(text, 2))
    (error,) = cases(junit_xml([odd], "a<b")).values()
    assert error is not None
    expected = "\\x1b[31mred\\x00\\x0b <&>\"' ]]> \\udcff \\ufffe é 𝄞\ttab"
    expected = f"not judged: {expected}"
    assert error.text == expected and error.get("message") == expected


def test_what_can_not_be_written_is_refused_before_the_work(tmp_path: Path, emo: Emo) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "no" / "x.xml", tmp_path / "file" / "x.xml", "/proc/x.xml"):
        done = emo("validate", tmp_path, "--junit", path)
        assert done.code == 2 and str(path) in done.err and "validating" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_whole_and_a_link_or_device_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    check_writable(link)
    assert file.read_text() == "old"
    write_whole(link, b"new")
    assert link.is_symlink() and file.read_text() == "new"
    write_whole(Path("/dev/null"), b"x")
    assert not Path("/dev/null").is_file()
    check_writable(Path("/dev/full"))  # which opens
    with pytest.raises(EmoExportError, match="No space left"):
        write_whole(Path("/dev/full"), b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def spoiled(package: Path, tmp_path: Path, name: str, change: bytes | None) -> Path:
    """A copy in which one file is overwritten in the middle, or (None) cut short."""
    copy = shutil.copytree(package, tmp_path / "mine")
    with (copy / name).open("r+b") as file:
        middle = (copy / name).stat().st_size // 2
        file.seek(middle)
        file.truncate() if change is None else file.write(change)
    return copy


def test_validate_writes_what_it_prints(package: Path, tmp_path: Path, emo: Emo) -> None:
    junit = tmp_path / "parity.xml"
    done = emo("validate", package, "--junit", junit, "--json")
    assert done.code == 0
    found = cases(junit.read_bytes())
    printed = json.loads(done.out)
    assert printed["passed"] and len(printed["targets"]) == 2
    rows = sum(len(target["rows"]) for target in printed["targets"])
    assert len(found) == rows + 2 * 2 and set(found.values()) == {None}
    assert {name.split(".")[:2][1] for name, _ in found} == {"here"}


def test_one_fails_and_the_engine_of_the_other_is_missing(package: Path, tmp_path: Path) -> None:
    copy = spoiled(package, tmp_path, "model-F32.gguf", bytes(20_000))
    junit = tmp_path / "parity.xml"
    arguments = ("validate", copy, "--junit", junit, "--json")
    done = without("onnxruntime", tmp_path, *arguments)
    assert done.returncode == 1  # a failed parity is what the run is about
    assert "error: failed: gguf:f32\n" in done.stderr and "[ort]" in done.stderr
    printed = json.loads(done.stdout)
    gguf, onnx = printed["targets"]
    assert not printed["passed"] and gguf["damage"][0]["what"] == "content"
    assert "[ort]" in onnx["refusal"]["text"] and onnx["refusal"]["exit_code"] == 3
    tags = {key: wrong.tag for key, wrong in cases(junit.read_bytes()).items() if wrong is not None}
    assert tags["mine.here.onnx:f32", "run"] == "error"
    assert tags["mine.here.gguf:f32", "run"] == "failure"  # its SHA-256

    neither = without("onnxruntime,xllamacpp", tmp_path, *arguments)
    assert neither.returncode == 3
    printed = json.loads(neither.stdout)
    assert not printed["passed"] and len(printed["targets"]) == 2
    assert not any(target["rows"] for target in printed["targets"])
    found = cases(junit.read_bytes())
    assert [wrong.tag for wrong in found.values() if wrong is not None] == ["error", "error"]


def test_a_model_that_can_not_be_read_does_not_hide_the_other(
    package: Path, tmp_path: Path, emo: Emo
) -> None:
    copy = spoiled(package, tmp_path, "onnx-f32/model.onnx", None)
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = (f for f in manifest["files"] if f["path"] == "onnx-f32/model.onnx")
    model = copy / entry["path"]
    entry |= {"bytes": model.stat().st_size, "sha256": digest(model)}  # or the digest would tell
    (copy / "manifest.json").write_text(json.dumps(manifest))
    junit = tmp_path / "parity.xml"
    done = emo("validate", copy, "--junit", junit)
    assert done.code == 2 and "gguf:f32: pass" in done.out and "onnx:f32" in done.err
    found = {key: wrong for key, wrong in cases(junit.read_bytes()).items() if wrong is not None}
    assert [(key, wrong.tag) for key, wrong in found.items()] == [
        (("mine.here.onnx:f32", "run"), "error")
    ]


def test_a_neighbour_of_a_similar_name_is_not_blamed(
    package: Path, tmp_path: Path, emo: Emo
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "mine"))
    manifest = json.loads((copy / "manifest.json").read_text())
    shutil.copytree(copy / "onnx-f32", copy / "onnx-f32-if")
    manifest["targets"]["onnx:f32@if"] = manifest["targets"]["onnx:f32"] | {"path": "onnx-f32-if"}
    (copy / "manifest.json").write_text(json.dumps(manifest))  # its files are in no manifest
    assert emo("validate", copy, "--target", "onnx:f32").code == 0
    assert emo("validate", copy, "--target", "onnx:f32@if").code == 1


SHELL = '"$0" -m emo_export.cli.main "$@"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "code"),
    [(">&-", 0), ("<&- >&- 2>&-", 0), ("2>/dev/full", 2), (">/dev/full", 2)],
)
def test_streams_that_are_closed_or_full(
    redirect: str, code: int, package: Path, tmp_path: Path
) -> None:
    junit = tmp_path / "parity.xml"
    line = ["sh", "-c", f"{SHELL} {redirect}", sys.executable, "validate", str(package)]
    line += ["--target", "gguf:f32", "--junit", str(junit)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr
    if redirect != "2>/dev/full":  # there the first line of progress ends the run
        assert set(cases(junit.read_bytes()).values()) == {None}


def test_an_error_that_nobody_hears_keeps_its_code(tmp_path: Path) -> None:
    for redirect, arguments in (
        ("2>&-", ["validate", str(tmp_path / "no")]),
        ("2>/dev/full", ["run"]),
    ):
        line = ["sh", "-c", f"{SHELL} {redirect}", sys.executable, *arguments]
        assert subprocess.run(line, capture_output=True, check=False).returncode == 2


def test_an_interrupted_validation_leaves_the_last_file_alone(
    package: Path, tmp_path: Path
) -> None:
    junit = tmp_path / "parity.xml"
    junit.write_text("of the run before")
    command = [sys.executable, "-m", "emo_export.cli.main", "validate", str(package)]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--junit", str(junit)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stdout is not None
    assert "validating" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read().strip() == "interrupted" and process.stdout.read() == ""
    process.stderr.close()
    process.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == ["parity.xml"]
    assert junit.read_text() == "of the run before"
