"""What is refused before anything large is loaded, and what each refusal says to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from emo_export.bench.doctor import examine
from emo_export.bench.onnx_probe import described
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_needs import read_requirements
from emo_export.inspect.checkpoint import inspect_path
from emo_export.model.recipes import ONNX_RECIPES
from emo_export.runtimes.ort.engine import (
    TELEMETRY,
    check_engine,
    import_onnxruntime,
    missing_kernels,
)
from emo_export.runtimes.ort.model import OnnxModel
from tests.kit.exporting import exported
from tests.kit.paths import NANO
from tests.kit.tiers import slow_beyond

TARGETS = [f"onnx:{kind}@{graph}" for graph, kinds in ONNX_RECIPES.items() for kind in kinds]


@pytest.fixture
def weightless(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an export whose weights are all zeros."""

    def make(target: str) -> Path:
        folder = tmp_path / target.replace(":", "-")
        data = exported(NANO, target) / "model.onnx.data"
        shutil.copytree(data.parent, folder, ignore=lambda *_: [data.name])
        with (folder / data.name).open("wb") as file:
            file.truncate(data.stat().st_size)
        return folder

    return make


def change(folder: Path, **values: object) -> None:
    path = folder / "emo_export.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


@pytest.mark.parametrize("target", slow_beyond(["onnx:int4", "onnx:int4@if"], TARGETS))
def test_every_operator_of_our_graphs_has_a_kernel(target: str) -> None:
    folder = exported(NANO, target)
    kind, graph = target.removeprefix("onnx:").split("@")
    needs = check_engine(folder)
    assert (needs.graph, needs.type) == (graph, kind)
    file = read_onnx(folder / "model.onnx")
    assert missing_kernels(file.ops, file.opsets) == []
    # the same operators at an opset from before some of them had a kernel
    missing = missing_kernels(file.ops, file.opsets | {"": 6})
    assert ("RMSNormalization" in missing) == ("RMSNormalization" in file.ops)


@pytest.mark.parametrize(
    ("operator", "advice"),
    [
        ("RMSNormalization", "--to onnx:int4@if, which opens in onnxruntime 1.22"),
        ("com.microsoft.MatMulNBits", "--to onnx:int8@standard, which opens in onnxruntime 1.23"),
    ],
)
def test_an_operator_without_kernel_is_named(
    weightless: Callable[[str], Path], operator: str, advice: str
) -> None:
    folder = weightless("onnx:int4")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == operator.removeprefix("com.microsoft."):
            node.op_type += "Next"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(EmoExportError) as error:
        OnnxModel(folder)
    said = str(error.value)
    assert f"no CPU kernel for {operator}Next: install the full build" in said
    assert 'pip install "onnxruntime>=1.31", or export the checkpoint again' in said
    assert advice in said


def test_a_version_too_old_names_both_remedies(weightless: Callable[[str], Path]) -> None:
    folder = weightless("onnx:int8")
    change(folder, onnxruntime_min="99.2")
    with pytest.raises(EmoExportError) as error:
        OnnxModel(folder)
    said = str(error.value)
    assert "needs onnxruntime 99.2 or newer and 1." in said
    assert 'pip install "onnxruntime>=99.2"' in said
    assert "--to onnx:int8@if, which opens in onnxruntime 1.22 and newer" in said
    assert said in inspect_path(folder).warnings


def test_what_1_22_and_older_are_told(weightless: Callable[[str], Path]) -> None:
    needs = {kind: read_requirements(weightless(kind)) for kind in ("onnx:int4", "onnx:int4@if")}
    with pytest.raises(EmoExportError, match=r"needs onnxruntime 1\.31 .* --to onnx:int4@if"):
        needs["onnx:int4"].check(Path("x"), "1.22.1")
    with pytest.raises(EmoExportError) as error:
        needs["onnx:int4"].check(Path("x"), "1.21.0")
    assert "@if" not in str(error.value)
    needs["onnx:int4@if"].check(Path("x"), "1.22.0")
    with pytest.raises(EmoExportError, match=r'1\.21\.0 is installed: pip install "onnxrun.*22"$'):
        needs["onnx:int4@if"].check(Path("x"), "1.21.0")


def test_a_graph_of_a_newer_emo_export_is_refused(weightless: Callable[[str], Path]) -> None:
    folder = weightless("onnx:int4")
    change(folder, graph="gather")
    with pytest.raises(EmoExportError, match=r"has the graph 'gather', .* upgrade emo-export"):
        OnnxModel(folder)
    assert any("'gather'" in warning for warning in inspect_path(folder).warnings)
    change(folder, graph=7)
    with pytest.raises(EmoExportError, match="graph is 7 and type 'int4', expected names"):
        OnnxModel(folder)


BROKEN = 'raise ImportError("libcudart.so: no such file")'
EMPTY = '__version__ = "1.9.0"\ndef get_available_providers(): return ["CPUExecutionProvider"]'


def shadow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let `import onnxruntime` run this code instead, here and in child processes."""
    (tmp_path / "onnxruntime.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)


def test_an_engine_that_cannot_be_loaded_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shadow(monkeypatch, tmp_path, BROKEN)
    with pytest.raises(MissingDependencyError, match=r"libcudart.so: no such file\): pip install"):
        import_onnxruntime()


def test_doctor_says_no_where_no_graph_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shadow(monkeypatch, tmp_path, EMPTY)
    checks = {check.name: check for check in examine()}
    assert checks["onnxruntime loads"].found.endswith("opens the graphs none")
    assert not checks["onnxruntime loads"].ok and checks["onnxruntime loads"].remedy
    assert not checks["ready: run and validate ONNX"].ok


@pytest.mark.parametrize("version", ["", "abc", "9" * 5000, None, 1.31])
def test_what_is_no_version_is_refused(version: object, weightless: Callable[[str], Path]) -> None:
    folder = weightless("onnx:int4")
    change(folder, onnxruntime_min=version)
    with pytest.raises(EmoExportError, match=r"onnxruntime_min is .*, expected one like '1\.31'"):
        read_requirements(folder)
    assert any("onnxruntime_min is" in warning for warning in inspect_path(folder).warnings)


def test_doctor_tells_the_graphs_of_an_engine() -> None:
    providers = "AzureExecutionProvider CPUExecutionProvider"
    contrib = "com.microsoft.QMoE com.microsoft.MatMulNBits .RMSNormalization"
    assert described(f"1.31.1 {providers}\n{contrib}\n").endswith("graphs qmoe, if, standard")
    assert described(f"1.31.1 {providers}\n.RMSNormalization .Gather").endswith("graphs standard")
    assert described(f"1.25.0 {providers}").endswith("graphs if, standard")
    assert described(f"1.21.0 {providers}\n{contrib}").endswith("graphs none")


def test_onnxruntime_tells_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    """Loading it alone would make a file in TMPDIR, and one with a number of this device."""
    line = "from emo_export.runtimes.ort.engine import import_onnxruntime as load; load()"
    environment = {key: value for key, value in os.environ.items() if key != TELEMETRY}
    environment |= dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME"), str(tmp_path))
    subprocess.run([sys.executable, "-c", line], env=environment, check=True)
    assert not list(tmp_path.rglob("*"))
