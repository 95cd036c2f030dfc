"""`validate` on devices, as the command line runs it: what fails keeps no other from its verdict.

The device is this machine, to which --ram leads; each target is a real run in its process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from emo_export.runtimes.devices.memory.trial import CrashError, try_memory
from emo_export.runtimes.families import family_at
from emo_export.spec import Spec
from tests.kit.command import Emo
from tests.kit.packages import SMALL_TARGETS, package

GGUF, ONNX = SMALL_TARGETS


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Path:
    """A package of both engines that a test may damage."""
    return shutil.copytree(package(golden / "base", SMALL_TARGETS), tmp_path / "package")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_target_fails_in_every_report_and_the_other_is_judged(
    emo: Emo, copied: Path, tmp_path: Path
) -> None:
    (model,) = copied.glob("*.gguf")
    flip(model)
    files = [f"--{kind}={tmp_path / kind}" for kind in ("html", "junit")]
    done = emo("validate", copied, "--ram", "2GB", "--json", *files)
    assert done.code == 1 and "differs from the manifest's SHA-256" in done.err
    found = json.loads(done.out)
    verdicts = {report["target"]: report["passed"] for report in found["targets"]}
    assert (found["passed"], verdicts) == (False, {GGUF: False, ONNX: True})
    root = ET.parse(tmp_path / "junit").getroot()
    assert (root.get("errors"), root.get("failures")) == ("1", "0")
    assert "SHA-256" in (tmp_path / "html").read_text("utf-8")


def test_a_damaged_golden_fails_all_with_exit_1(emo: Emo, copied: Path, tmp_path: Path) -> None:
    (copied / "golden.npz").write_bytes(b"PK")
    page = tmp_path / "report.html"
    done = emo("validate", copied, "--ram", "2GB", "--html", page)
    assert done.code == 1 and "golden.npz" in done.err
    assert "golden.npz" in page.read_text("utf-8")


@pytest.mark.slow
def test_a_target_whose_memory_cannot_be_told_keeps_no_other(emo: Emo, copied: Path) -> None:
    """No GGUF file, and the manifest says so too."""
    (model,) = copied.glob("*.gguf")
    model.write_bytes(b"no GGUF at all")
    manifest = json.loads((copied / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["path"] == model.name)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    entry.update(bytes=model.stat().st_size, sha256=digest, parts=[])
    (copied / "manifest.json").write_text(json.dumps(manifest))
    done = emo("validate", copied, "--ram", "2GB", "--json")
    assert done.code == 2 and "is not a GGUF file" in done.err
    verdicts = {one["target"]: one["passed"] for one in json.loads(done.out)["targets"]}
    assert verdicts == {GGUF: False, ONNX: True}


@pytest.mark.parametrize("signal", ["ILL", "KILL"])
def test_a_crash_while_memory_is_measured_is_a_failure(golden: Path, signal: str) -> None:
    (path,) = package(golden / "base", SMALL_TARGETS).glob("*.gguf")
    command = ["/bin/sh", "-c", f"kill -{signal} $$"]
    with pytest.raises(CrashError, match=f"measuring its memory ended by SIG{signal}") as error:
        need = family_at(path).need(path, 8)
        try_memory(Spec.parse(GGUF), path, need, 1 << 31, lambda rest: command, os.environ)
    assert error.value.exit_code == 1
