"""Prepacked copies: the same logits, less memory, made once, and made again when they must be."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.prepacked import default_cache, prepacked_copy
from emo_export.runtimes.ort.prepacked_key import cpu_identity, prepacked_key
from tests.bench.test_doctor import LAPTOP, PI4, PI5, machine
from tests.kit.command import Emo
from tests.kit.exporting import exported
from tests.kit.paths import NANO
from tests.kit.prepacked_copies import child, silent
from tests.kit.tiers import slow_beyond

MIB = 1 << 20
MEMORY_CHILD = """
import re, sys
from pathlib import Path
import numpy as np
from emo_export.runtimes.ort.model import OnnxModel
copy = Path(sys.argv[2]) if sys.argv[2] else None
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
import onnxruntime
before = anonymous()
model = OnnxModel(Path(sys.argv[1]), threads=1, prepacked=copy)
model.forward(np.arange(4))
print(anonymous() - before)
"""


def logits(model: OnnxModel) -> list[np.ndarray]:
    ids = np.arange(24) * 37 % model.vocab_size
    steps = [ids[:20], *(ids[at : at + 1] for at in range(20, 24))]
    return [model.forward(step) for step in steps]


@pytest.mark.parametrize(
    "target",
    [
        "onnx:int4",
        pytest.param("onnx:int8", marks=pytest.mark.slow),
        "onnx:int4@if",
        pytest.param("onnx:int8@if", marks=pytest.mark.slow),
        pytest.param("onnx:f32@if", marks=pytest.mark.slow),
    ],
)
def test_logits_are_equal_to_the_bit(target: str, cache: Path) -> None:
    folder = exported(NANO, target)
    copy = prepacked_copy(folder, cache, lambda text: None, 4 * MIB)
    model = OnnxModel(folder, threads=1, prepacked=copy)
    assert model.describe()["weights"] == "prepacked copy, mapped"
    for found, want in zip(logits(model), logits(OnnxModel(folder, threads=1)), strict=True):
        np.testing.assert_array_equal(found, want)
    with pytest.raises(EmoExportError, match="weights elsewhere than a prepacked copy"):
        OnnxModel(folder, graph=(folder / "model.onnx").read_bytes(), prepacked=copy)


def blocks(tensor: onnx.TensorProto) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of what lies in the data file for a weight."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    yield tensor.name, int(entries["offset"]), int(entries["length"])
    for key, value in entries.items():
        if key.startswith("prepacked_"):
            name, *places = value.split("|")
            for place in places:
                offset, nbytes, _ = place.split(";")
                yield name, int(offset), int(nbytes)


def test_a_copy_holds_the_weights_and_page_aligned_blocks(cache: Path) -> None:
    folder = exported(NANO, "onnx:int4")
    tensors = onnx.load(folder / "model.onnx").graph.initializer
    weights = {tensor.name: tensor.raw_data for tensor in tensors}
    made = {}
    for group_name, group in (("one", 1 << 40), ("many", MIB)):
        copy = prepacked_copy(folder, cache / group_name, lambda text: None, group)
        model = onnx.load(copy / "model.onnx", load_external_data=False)
        data = (copy / "model.onnx.data").read_bytes()
        tensors = [t for t in model.graph.initializer if t.external_data]
        found = [block for tensor in tensors for block in blocks(tensor)]
        assert all(offset % 4096 == 0 for _, offset, _ in found)
        made[group_name] = Counter((key, data[at : at + size]) for key, at, size in found)
        for tensor in tensors:
            name, at, size = next(blocks(tensor))
            assert data[at : at + size] == weights[name]
    packed = {key for key, _ in made["one"] if "+" in key}
    assert {"QMoE", "MatMulNBits"} <= {key.split("+")[0] for key in packed}
    assert made["many"] == made["one"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx:int8", "onnx:int8@if"])
def test_a_copy_leaves_little_anonymous_memory(target: str, cache: Path) -> None:
    folder = exported(NANO, target)
    weights = (folder / "model.onnx.data").stat().st_size
    copy = prepacked_copy(folder, cache, lambda text: None)
    both = [child(MEMORY_CHILD, folder, place) for place in ("", copy)]
    without, with_copy = (int(process.communicate(timeout=60)[0]) for process in both)
    assert without > 0.9 * weights
    # kernels that find no block of theirs pack again: each would show here
    assert without - with_copy > 0.7 * weights


def test_it_is_made_once(folder: Path, cache: Path) -> None:
    said: list[str] = []
    copy = prepacked_copy(folder, cache, said.append)
    assert "prepacking 14 MB of weights once" in said[0] and str(copy) in said[0]
    assert said[1].startswith("prepacked in ")
    assert prepacked_copy(folder, cache, silent) == copy
    assert [path for path in cache.iterdir() if path.is_dir()] == [copy]
    assert sorted(path.name for path in copy.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
        "prepacked.json",
    ]


def test_a_stale_copy_is_replaced(folder: Path, cache: Path, tmp_path: Path) -> None:
    old = prepacked_copy(folder, cache, lambda text: None)
    other = shutil.copytree(folder, tmp_path / "other")
    kept = prepacked_copy(other, cache, lambda text: None)
    foreign = cache / "foreign"
    foreign.mkdir()
    (foreign / "prepacked.json").write_text("{", "utf-8")
    os.utime(folder / "model.onnx.data", ns=(1, 1))
    said: list[str] = []
    new = prepacked_copy(folder, cache, said.append)
    assert new != old
    assert said[0] == f"removing {old}: weights changed since it was made"
    assert {path for path in cache.iterdir() if path.is_dir()} == {new, kept, foreign}


@pytest.mark.slow
def test_other_weights_with_the_same_bytes_and_time_are_noticed(folder: Path, cache: Path) -> None:
    old = prepacked_copy(folder, cache, lambda text: None)
    data = folder / "model.onnx.data"
    before = data.stat()
    data.write_bytes(data.read_bytes()[::-1])
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = data.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    said: list[str] = []
    assert prepacked_copy(folder, cache, said.append) != old
    assert said[0] == f"removing {old}: weights changed since it was made"


def test_a_copy_for_another_engine_or_cpu_is_stale(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    key = prepacked_key(folder)
    pi = prepacked_key(folder, machine(tmp_path / "pi", PI4))
    assert pi.digest != key.digest and pi.cpu != key.cpu
    copy = prepacked_copy(folder, cache, lambda text: None)
    old = copy.rename(cache / f"model-{pi.digest}")
    record = json.loads((old / "prepacked.json").read_text("utf-8"))
    record["key"] |= {"cpu": pi.cpu, "onnxruntime": "1.30.0"}
    (old / "prepacked.json").write_text(json.dumps(record), "utf-8")
    said: list[str] = []
    assert prepacked_copy(folder, cache, said.append) == copy
    assert said[0] == f"removing {old}: onnxruntime, cpu changed since it was made"
    assert not old.exists()


def test_cpus_are_told_apart(tmp_path: Path) -> None:
    texts = {"pi4": PI4, "pi5": PI5, "laptop": LAPTOP, "none": ""}
    found = {name: cpu_identity(machine(tmp_path / name, text)) for name, text in texts.items()}
    assert len(set(found.values())) == len(texts)
    assert "asimddp" in found["pi5"] and "avx_vnni" in found["laptop"]
    again = machine(
        tmp_path / "hot", LAPTOP.replace("model name\t: A", "cpu MHz: 9\nmodel name: A")
    )
    assert cpu_identity(again) == found["laptop"]
    two_kinds = machine(tmp_path / "phone", PI4 + "\n" + PI5)
    assert cpu_identity(two_kinds) not in found.values()
    assert cpu_identity(tmp_path / "missing")


@pytest.mark.parametrize(
    "damage",
    slow_beyond(["written", "record"], ["truncated", "written", "missing", "record", "no record"]),
)
def test_a_damaged_copy_is_made_again(damage: str, folder: Path, cache: Path) -> None:
    copy = prepacked_copy(folder, cache, lambda text: None)
    data, record = copy / "model.onnx.data", copy / "prepacked.json"
    whole = data.read_bytes()
    if damage == "truncated":
        os.truncate(data, len(whole) - 1)
    elif damage == "written":
        with data.open("r+b") as file:
            file.write(bytes(100))
    elif damage == "missing":
        data.unlink()
    else:
        record.unlink()
        if damage == "record":
            record.write_text('{"files": {}}', "utf-8")
    said: list[str] = []
    assert prepacked_copy(folder, cache, said.append) == copy
    assert said[0].startswith(f"{copy}: ") and said[0].endswith("; making it again")
    assert data.read_bytes() == whole
    assert prepacked_copy(folder, cache, silent) == copy


@pytest.mark.parametrize("target", ["onnx:f32", "onnx:int8@standard"])
def test_graphs_that_gain_little_are_refused(target: str, cache: Path) -> None:
    with pytest.raises(EmoExportError, match="is of little use here: ONNX Runtime maps"):
        prepacked_copy(exported(NANO, target), cache, silent)
    assert not cache.exists()


def test_paths_that_are_not_utf8_are_refused(folder: Path, cache: Path) -> None:
    odd = folder.rename(folder.with_name("m\udcff"))
    with pytest.raises(EmoExportError, match="takes no path that is not UTF-8"):
        OnnxModel(odd, threads=1)
    for model, place in ((odd, cache), (exported(NANO, "onnx:int4"), cache / "c\udcff")):
        with pytest.raises(EmoExportError, match="takes no path that is not UTF-8"):
            prepacked_copy(model, place, lambda text: None)
        assert [path for path in place.glob("*") if path.is_dir()] == []


def test_weights_of_inner_graphs_are_refused(tmp_path: Path, cache: Path) -> None:
    folder = Path(shutil.copytree(exported(NANO, "onnx:int4@if"), tmp_path / "inner"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    branch = next(
        attribute.g
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "If"
        and any(inner.op_type == "MatMulNBits" for inner in attribute.g.node)
    )
    names = {name for node in branch.node for name in node.input}
    moved = next(t for t in model.graph.initializer if t.name in names and t.external_data)
    branch.initializer.append(moved)
    model.graph.initializer.remove(moved)
    onnx.save(model, folder / "model.onnx")
    OnnxModel(folder, threads=1)
    with pytest.raises(EmoExportError, match=r"1 external weights .* lie in graphs within"):
        prepacked_copy(folder, cache, lambda text: None)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/fast")
    assert default_cache() == Path("/var/fast/emo-export/prepacked")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # its specification says to ignore such
    monkeypatch.setenv("HOME", "/home/pi")
    assert default_cache() == Path("/home/pi/.cache/emo-export/prepacked")


def test_run_makes_and_uses_a_copy(folder: Path, cache: Path, emo: Emo) -> None:
    text = ("run", folder, "-p", "def main(", "-n", 8, "--temperature", 0)
    plain = emo(*text)
    options = ("--cache-prepacked", "--cache-dir", cache, "--no-spin", "--threads", 2)
    first, second = emo(*text, *options), emo(*text, *options)
    assert [done.code for done in (plain, first, second)] == [0, 0, 0]
    assert plain.out == first.out == second.out
    assert "prepacking 14 MB" in first.err and "prepacked in" in first.err
    assert "prepack" not in second.err
    (copy,) = cache.glob("model-*")
    os.truncate(copy / "model.onnx", 100)  # its record tells
    again = emo(*text, *options)
    assert again.out == plain.out and "model.onnx has [100, " in again.err


def test_options_without_effect_are_refused(small_exports: dict[str, Path], emo: Emo) -> None:
    gguf, onnx_folder = small_exports["gguf:q4_0"], small_exports["onnx:int4"]
    for path, option, said in (
        (gguf, ["--cache-prepacked"], "--cache-prepacked is for ONNX targets"),
        (gguf, ["--spin"], "--spin/--no-spin is for ONNX targets"),
        (onnx_folder, ["--cache-dir", onnx_folder], "no effect without --cache-prepacked"),
    ):
        done = emo("run", path, "-p", "a", *option)
        assert done.code == 2 and said in done.err
    assert "session.intra_op.allow_spinning=0" in str(
        OnnxModel(exported(NANO, "onnx:int4"), spin=False).describe()
    )
