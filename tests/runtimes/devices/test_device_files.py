"""What `validate` writes of runs on devices: the page, the JUnit file and the JSON say the same."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emo_export.base.ram_size import parse_size, spelled
from emo_export.runtimes.devices.options import DeviceOptions
from tests.kit.command import Emo
from tests.kit.junit_schema import check_junit
from tests.kit.paths import ROOT
from tests.kit.report_pages import Page, at, check_written


def written(emo: Emo, package: Path, tmp_path: Path, *options: str) -> tuple[int, list[Any], Page]:
    """What a run printed as JSON and its page, after JUnit and page were held against the JSON."""
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    done = emo("validate", package, *options, "--html", html, "--junit", junit, "--json")
    content = json.loads(done.out)["targets"]
    page = Page(html.read_text("utf-8"))
    check_written(page, content)
    for suite, made in zip(check_junit(junit.read_bytes()), content, strict=True):
        facts = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
        assert facts["repeat"] == made["repeat"] and facts["command"] == made["command"]
        for key in ("memory.needs.total", "memory.needs.holds", "memory.peak"):
            if key in facts:
                assert facts[key] == str(at(made, key))
        assert not any(key.startswith("memory.samples") for key in facts)
    return done.code, content, page


@pytest.mark.slow
def test_a_target_in_enough_memory(package: Path, tmp_path: Path, emo: Emo) -> None:
    asked = ("--target", "gguf:f32", "--ram", "2GB", "--context", "256")
    code, (made,), page = written(emo, package, tmp_path, *asked)
    assert code == 0 and made["memory"]["needs"]["holds"]
    text = " ".join(page.text.split())
    assert "gguf:f32 needs" in text and "it may have 2.00 GB, which holds it." in text
    repeat = shlex.split(made["repeat"])
    assert repeat[:2] == ["emo-export", "validate"] and repeat[2] == str(package)
    expected = ["--target", "gguf:f32", "--device", "here", "--ram", "2GB", "--context", "256"]
    assert repeat[3:] == expected


def test_a_target_in_too_little_memory(package: Path, tmp_path: Path, emo: Emo) -> None:
    asked = ("--target", "gguf:f32", "--ram", "2MB", "--context", "64")
    code, (made,), page = written(emo, package, tmp_path, *asked)
    assert code == 1 and not made["rows"] and not made["memory"]["needs"]["holds"]
    text = " ".join(page.text.split())
    assert "by its headers; it may have 2.0 MB, which is too little, so it was not run." in text
    (suite,) = check_junit((tmp_path / "r.xml").read_bytes())
    (wrong,) = suite.iter("failure")  # a limit that was exceeded, and no error
    assert "more than --ram 2.0 MB" in wrong.attrib["message"]


CRASH = """
import os, signal, sys
if {"emo_export.runtimes.devices.far.on_device", "onnx:f32"} <= set(sys.orig_argv):
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_here_is_a_failed_target(package: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    command = [sys.executable, "-m", "emo_export.cli.main", "validate", str(package), "--json"]
    command += ["--device", "here", "--html", str(html), "--junit", str(junit)]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed: onnx:f32\n" in done.stderr
    content = json.loads(done.stdout)["targets"]
    assert {made["target"]: made["passed"] for made in content} == {
        "gguf:f32": True,
        "onnx:f32": False,
    }
    (wrong,) = check_junit(junit.read_bytes()).iter("error")
    assert wrong.attrib["message"].startswith("ended by SIGSEGV: the engine crashed")
    page = Page(html.read_text("utf-8"))
    check_written(page, content)
    assert "onnx:f32: ended by SIGSEGV" in page.text


@pytest.mark.device
def test_an_emulated_device(package: Path, tmp_path: Path, emo: Emo) -> None:
    from tests.kit.emulated import use_shared_setup

    use_shared_setup()
    asked = ("--target", "onnx:f32", "--device", "pi4", "--context", "64", "--device-tokens", "24")
    code, (made,), page = written(emo, package, tmp_path, *asked)
    assert code in (0, 1) and made["rows"]
    assert made["memory"]["needs"]["measured"] and made["memory"]["held_by"]
    text = " ".join(page.text.split())
    assert "Of the sizes that pi4 is sold in, it fits into 1 GiB, 2 GiB" in text
    assert "QMoE 4 bits: float activations" in text


def test_how_to_repeat_a_run() -> None:
    options = DeviceOptions(
        ("pi4", "ssh://me@pi"), 1 << 30, 512, 0, 2, True, True, Path("/root"), "1.21.0"
    )
    ours = "--device pi4 --ram 1GiB --context 512 --device-tokens 0 --threads 2"
    assert shlex.join(options.arguments("pi4")) == f"{ours} --rootfs /root --onnxruntime 1.21.0"
    far = ours.replace("pi4", "ssh://me@pi")
    assert shlex.join(options.arguments("ssh://me@pi")) == f"{far} --setup --bench"
    for nbytes in (4 * 10**9, 1500 << 20, 60_000_000, 1_234_567):
        assert parse_size(spelled(nbytes)) == nbytes
