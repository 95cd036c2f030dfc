"""emo_export.testing and its pytest plugin, used by a pytest session of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from emo_export import validating
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices import judging
from emo_export.testing import Parity, assert_parity
from tests.kit.emulated import use_shared_setup
from tests.kit.paths import ROOT
from tests.kit.without import BLOCKER

PLUGIN = "emo_export.pytest_plugin"


@pytest.mark.slow
def test_a_package_that_is_as_exported_passes(package: Path) -> None:
    reports = assert_parity(package)
    assert [report.target for report in reports] == ["gguf:f32", "onnx:f32"]
    (one,) = assert_parity(str(package), targets=["onnx:f32"], threads=1)
    assert one.passed and one.rows
    (alone,) = assert_parity(package / "model-F32.gguf")
    assert alone.target == "gguf:f32"


def test_what_is_wrong_is_told_in_sentences(package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "mine"))
    with (copy / "model-F32.gguf").open("r+b") as file:
        file.seek((copy / "model-F32.gguf").stat().st_size // 2)
        file.write(bytes(20_000))
    with pytest.raises(AssertionError) as stop:
        assert_parity(copy)
    lines = str(stop.value).splitlines()
    assert lines[0] == "failed: gguf:f32"
    assert any("mean KL" in line and "above the limit" in line for line in lines)
    assert any("SHA-256" in line for line in lines)
    assert_parity(copy, targets=["onnx:f32"])
    with pytest.raises(EmoExportError, match="has no target"):
        assert_parity(copy, targets=["onnx:int4"])
    with pytest.raises(TypeError, match="list"):
        assert_parity(copy, targets="onnx:f32")


def test_a_missing_engine_is_no_pass(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_export.validating.missing_engine", lambda spec: "pip install it")
    with pytest.raises(MissingDependencyError, match="pip install it"):
        assert_parity(package)


def test_a_target_is_judged_again_only_when_its_files_changed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    judge = validating.judge
    monkeypatch.setattr(
        validating, "judge", lambda spec, *rest: judged.append(str(spec)) or judge(spec, *rest)
    )
    copy = Path(shutil.copytree(package, tmp_path / "mine"))
    parity = Parity()
    parity(copy, targets=["onnx:f32"])
    parity(copy)
    parity(copy)
    assert judged == ["onnx:f32", "gguf:f32"]
    model = copy / "model-F32.gguf"
    before = model.stat()
    with model.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(bytes(20_000))
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    with pytest.raises(AssertionError):
        parity(copy)
    assert judged == ["onnx:f32", "gguf:f32", "gguf:f32"]


@pytest.mark.slow
def test_a_device(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own here; a device has a memory of its own."""
    runs: list[tuple[str, ...]] = []
    judge_devices = judging.judge_devices
    monkeypatch.setattr(
        judging,
        "judge_devices",
        lambda folder, targets, damage, options, say: (
            runs.append((*options.names, *targets))
            or judge_devices(folder, targets, damage, options, say)
        ),
    )
    copy = Path(shutil.copytree(package, tmp_path / "mine"))
    parity = Parity()
    for _ in range(2):
        (there,) = parity(copy, ["gguf:f32"], device="here")
    (here,) = parity(copy, ["gguf:f32"])
    assert runs == [("here", "gguf:f32")] and there.passed and here.passed
    assert there.as_dict()["rows"][0]["measured"] == here.as_dict()["rows"][0]["measured"]
    with (copy / "model-F32.gguf").open("r+b") as file:
        file.seek((copy / "model-F32.gguf").stat().st_size // 2)
        file.write(bytes(20_000))
    with pytest.raises(AssertionError, match="SHA-256"):
        parity(copy, ["gguf:f32"], device="here")
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = (f for f in manifest["files"] if f["path"] == "model-F32.gguf")
    entry |= {"sha256": digest(copy / "model-F32.gguf"), "parts": []}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AssertionError) as stop:
        parity(copy, ["gguf:f32"], device="here")
    assert str(stop.value).splitlines()[0] == "failed: gguf:f32"
    assert (
        "gguf:f32: compared with the dequantised reference (as shipped, whole prompt): mean KL"
        in str(stop.value)
    )


def test_a_device_that_can_not_be_used_is_no_pass(package: Path) -> None:
    with pytest.raises(EmoExportError, match="expected pi4, pi5"):
        assert_parity(package, device="pi9")
    with pytest.raises(EmoExportError, match=r"127\.0\.0\.1"):
        assert_parity(package, ["gguf:f32"], device="ssh://nobody@127.0.0.1:9")


@pytest.mark.device
def test_an_emulated_device(package: Path) -> None:
    use_shared_setup()
    (report,) = assert_parity(package, ["onnx:f32"], device="pi4")
    assert report.passed and report.rows


def session(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own in `folder`, with our plugin and no other."""
    variables = {"PYTHONPATH": f"{folder}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables | env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_fixture_in_a_users_suite(package: Path, tmp_path: Path) -> None:
    """The example, on another target; then a package that fails."""
    text = (ROOT / "examples" / "test_my_package.py").read_text()
    (tmp_path / "test_my_package.py").write_text(text.replace("onnx:int4", "onnx:f32"))
    copy = Path(shutil.copytree(package, tmp_path / "mine"))
    good = session(tmp_path)
    assert good.returncode == 0 and "2 passed" in good.stdout, good.stdout
    limits = json.loads((copy / "manifest.json").read_text())
    limits["files"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(limits))
    with (copy / "model-F32.gguf").open("ab") as file:
        file.write(b"x")
    bad = session(tmp_path)
    assert bad.returncode == 1 and "1 failed, 1 passed" in bad.stdout
    assert "E           AssertionError: failed: gguf:f32" in bad.stdout.replace(
        "E       Assert", "E           Assert"
    )
    assert "emo_parity(PACKAGE)" in bad.stdout and "validating.py" not in bad.stdout


def test_the_plugin_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_light():\n"
        "    loaded = {name for name in sys.modules if name.startswith('emo_export')}\n"
        f"    assert loaded == {{'emo_export', '{PLUGIN}'}}\n"
        "    heavy = {'numpy', 'rich', 'click', 'onnxruntime', 'xllamacpp', 'torch'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    done = session(tmp_path, BLOCKED="numpy,rich,click")
    assert done.returncode == 0, done.stdout + done.stderr
    without = "import emo_export.testing, sys; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", without], check=True)


def test_the_entry_point_is_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["pytest11"].items()
    assert name == value == PLUGIN
    assert hasattr(EntryPoint(name, value, "pytest11").load(), "emo_parity")
