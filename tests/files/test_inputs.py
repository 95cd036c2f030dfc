"""What a manifest says of the files that were read, hashed here again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from emo_export.files.manifest import BESIDE, PRUNED, InputEntry, Manifest
from tests.kit.command import Emo
from tests.kit.exporting import exported
from tests.kit.flipping import flip
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.paths import GOLDEN


def tensors_of(path: Path) -> tuple[str, dict[str, str]]:
    """SHA-256 of a safetensors header, and of each tensor's bytes."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = hashlib.sha256(raw[start + begin : start + end]).hexdigest()
    return hashlib.sha256(raw[:start]).hexdigest(), found


def by_path(inputs: tuple[InputEntry, ...]) -> dict[str, InputEntry]:
    return {one.path: one for one in inputs}


@pytest.mark.parametrize("name", ["base", pytest.param("sharded", marks=pytest.mark.slow)])
def test_every_byte_that_an_export_reads_has_a_digest(name: str) -> None:
    source = GOLDEN / name
    found = by_path(Manifest.load(package(source, SMALL_TARGETS)).origin.inputs)
    for path in source.glob("*.json"):
        one = found.pop(path.name, None)
        if path.name in ("config.json", "model.safetensors.index.json"):
            assert one is not None and one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    weights = list(source.glob("*.safetensors"))
    assert {p.name for p in weights} == set(found)
    for path in weights:
        one = found[path.name]
        assert (one.header_sha256, dict(one.tensors)) == tensors_of(path)
        assert one.bytes == path.stat().st_size and one.sha256 is None


def test_a_pruned_checkpoint_tells_what_was_not_read(
    tmp_path: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    source, text, out = GOLDEN / "base", tmp_path / "text.txt", tmp_path / "out"
    text.write_text("def mean(values):\n    return sum(values)\n" * 9, "utf-8")
    args = ("--keep", 6, "--calibration", text, "--no-loss")
    done = emo("prune", source, "-o", out, *args)
    assert done.code == 0, done.err
    assert emo("verify", out).code == 0
    manifest = Manifest.read(out / PRUNED, out)
    kept = manifest.source["kept"]
    assert kept == json.loads((out / "pruning_metadata.json").read_text())["experts_kept_per_layer"]
    (weights,) = (one for one in manifest.origin.inputs if one.tensors)
    _, whole = tensors_of(source / weights.path)

    def is_kept(tensor: str) -> bool:
        parts = tensor.split(".")
        return "experts" not in parts or int(parts[5]) in kept[int(parts[2])]

    assert dict(weights.tensors) == {name: one for name, one in whole.items() if is_kept(name)}
    assert len(weights.tensors) < len(whole)
    command = (
        f"emo-export prune --output out --keep 6 --calibration text.txt --no-loss {source.name}"
    )
    assert sorted((manifest.origin.command or "").split()) == sorted(command.split())
    assert manifest.origin.date == "1970-01-02T00:00:00Z"
    assert manifest.origin.recipe["options"]["text"]["places"] == ["text.txt"]
    assert str(tmp_path) not in (out / PRUNED).read_text("utf-8")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    refused = emo("prune", source, "-o", tmp_path / "other", *args)
    assert refused.code == 2 and "SOURCE_DATE_EPOCH" in refused.err
    assert not (tmp_path / "other").exists()


def test_a_pruned_file_has_its_manifest_beside_it(tmp_path: Path, emo: Emo) -> None:
    source, text, out = (
        exported(GOLDEN / "base", "gguf:f32"),
        tmp_path / "t.txt",
        tmp_path / "c.gguf",
    )
    text.write_text("def mean(values):\n    return sum(values)\n" * 9, "utf-8")
    done = emo("prune", source, "-o", out, "--keep", 6, "--calibration", text, "--no-loss")
    assert done.code == 0, done.err
    beside = tmp_path / f"c.gguf{BESIDE}"
    (one,) = Manifest.read(beside, tmp_path).origin.inputs
    assert (one.path, one.sha256) == (
        source.name,
        hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    assert emo("verify", out).code == 0
    with out.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\xff")
    wrong = emo("verify", out, "--json")
    (problem,) = json.loads(wrong.out)["problems"]
    assert wrong.code == 1 and problem["path"] == "c.gguf"
    assert [place["kind"] for place in problem["places"]] == ["tensor"]
    renamed = out.rename(tmp_path / "d.gguf")
    beside.rename(tmp_path / f"d.gguf{BESIDE}")
    other = emo("verify", renamed)
    assert other.code == 2 and "names no file d.gguf" in other.err
    (tmp_path / f"d.gguf{BESIDE}").unlink()
    none = emo("verify", renamed)
    assert none.code == 2 and "d.gguf.manifest.json" in none.err


def test_a_damaged_package_is_not_pruned(tmp_path: Path, emo: Emo) -> None:
    copy = shutil.copytree(package(GOLDEN / "base", SMALL_TARGETS), tmp_path / "copy")
    flip(copy / "onnx-f32" / "model.onnx.data", 70_001, 2)
    args = ("--target", "onnx:f32", "--keep", 6, "--calibration", copy / "README.md", "--no-loss")
    done = emo("prune", copy, "-o", tmp_path / "small", *args)
    assert done.code == 2 and "model.onnx.data: is not the one that export wrote" in done.err
    assert not (tmp_path / "small").exists()
