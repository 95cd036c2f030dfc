"""Every byte of a folder is accounted for: what differs is found, and told by its place.

Where a tensor lies is asked of gguf-py, onnx and safetensors, not of the headers' readers here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

from emo_export.files.domains import write_domains
from emo_export.files.manifest import Manifest, Origin, files_in, is_sealed, write_manifest
from emo_export.files.parts import HEADER, PADDING, PIECE, TENSOR
from emo_export.files.target_entry import TargetEntry
from emo_export.files.verifying import (
    ABSENT,
    CONTENT,
    LINK,
    SIZE,
    SPECIAL,
    UNLISTED,
    Place,
    Problem,
    verify,
    verify_path,
)
from emo_export.spec import GGUF, Spec
from tests.kit.flipping import flip, tensors_at

SHAPES = {"first": (3, 5), "second": (2, 7), "third": (1, 9)}
WEIGHTS = {name: np.full(shape, 1.5, np.float32) for name, shape in SHAPES.items()}


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "deepseek")
    for name, values in WEIGHTS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(folder: Path) -> None:
    folder.mkdir()
    tensors = [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    graph = onnx.helper.make_graph([], "graph", [], [], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.save_model(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    write_gguf(made / "a.gguf")
    write_onnx(made / "onnx")
    save_file(WEIGHTS, made / "b.safetensors")
    np.savez_compressed(made / "golden.npz", **{"gguf:f32/logits": WEIGHTS["first"], "b": [1]})
    (made / "card.md").write_text("# card\n")
    seal(made)
    return made


def seal(folder: Path) -> None:
    target = TargetEntry(Spec(GGUF, "f32"), "a.gguf", {})
    write_manifest(folder, Origin(command="emo-export"), {"gguf:f32": target})


def test_a_bit_is_found_and_its_tensor_named_wherever_it_is(folder: Path) -> None:
    assert verify(folder) == []
    known = list(tensors_at(folder))
    assert {file for file, *_ in known} == {
        "a.gguf",
        "onnx/model.onnx.data",
        "b.safetensors",
        "golden.npz",
    }
    seen = set()
    for entry in Manifest.load(folder).files:
        path = folder / entry.path
        for number, at in enumerate(range(0, entry.bytes, 7)):
            flip(path, at, number % 8)
            (problem,) = verify(folder)
            flip(path, at, number % 8)
            inside = [name for file, name, a, b in known if file == entry.path and a <= at < b]
            assert (problem.path, problem.what) == (entry.path, CONTENT)
            if not any(file == entry.path for file, *_ in known):
                assert problem.places == ()
                continue
            (place,) = problem.places
            seen.add((entry.path, place.kind))
            if inside:
                assert place == Place(TENSOR, inside[0])
            else:
                assert place.kind in (HEADER, PADDING)
    assert seen >= {("a.gguf", kind) for kind in (HEADER, TENSOR, PADDING)}
    assert seen >= {("b.safetensors", HEADER), ("b.safetensors", TENSOR)}
    assert verify(folder) == []


def test_padding_is_told_apart_from_the_header(folder: Path) -> None:
    ends = {name: end for file, name, _, end in tensors_at(folder) if file == "a.gguf"}
    flip(folder / "a.gguf", ends["first"], 3)
    flip(folder / "a.gguf", 0)
    (problem,) = verify(folder)
    assert problem.places == (Place(HEADER, ""), Place(PADDING, "first"))


def test_a_bit_of_the_manifest_itself_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 11), *range(len(whole) - 75, len(whole))]:
        flip(path, at, at % 8)
        assert not is_sealed(path), at
        path.write_bytes(whole)
    at = whole.index(b'"command": "emo') + 13
    flip(path, at)
    assert verify(folder) == [Problem("manifest.json", CONTENT)]


def test_other_files_missing_ones_and_what_is_no_file_are_told(
    folder: Path, tmp_path: Path
) -> None:
    with (folder / "card.md").open("a") as file:
        file.write("more")
    (folder / "deep").mkdir()
    (folder / "deep" / "manifest.json").write_text("{}")
    (folder / "deep" / "elsewhere").symlink_to(tmp_path)
    (folder / "onnx" / "model.onnx").rename(folder / "moved.onnx")
    (folder / "onnx" / "model.onnx").symlink_to("../moved.onnx")
    (folder / "b.safetensors").unlink()
    os.mkfifo(folder / "b.safetensors")
    (folder / "a.gguf").unlink()
    assert {(one.path, one.what) for one in verify(folder)} == {
        ("card.md", SIZE),
        ("deep/manifest.json", UNLISTED),
        ("deep/elsewhere", UNLISTED),
        ("moved.onnx", UNLISTED),
        ("onnx/model.onnx", LINK),
        ("b.safetensors", SPECIAL),
        ("a.gguf", ABSENT),
    }


def test_a_second_name_outside_is_told_and_one_inside_is_not(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "a.gguf", tmp_path / "elsewhere")
    found = verify_path(folder)
    assert found.problems == () and [(one.path, one.names) for one in found.shared] == [
        ("a.gguf", 1)
    ]
    (tmp_path / "elsewhere").unlink()
    top = tmp_path / "domains"
    for name in ("c", "python"):
        shutil.copytree(folder, top / name)
    (top / "python" / "a.gguf").unlink()
    os.link(top / "c" / "a.gguf", top / "python" / "a.gguf")
    write_domains(top, ["c", "python"])
    for path in (top, top / "c"):
        assert verify_path(path).shared == () == verify_path(path).problems


def test_domains_are_verified_together(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "domains"
    for name in ("c", "python"):
        shutil.copytree(folder, top / name)
    write_domains(top, ["c", "python"])
    flip(top / "python" / "card.md", 2)
    (top / "rust").mkdir()
    (top / "rust" / "manifest.json").write_text("{}")
    (top / "domains.json").write_text((top / "domains.json").read_text() + "\n")
    assert {(one.path, one.what) for one in verify_path(top).problems} == {
        ("python/card.md", CONTENT),
        ("rust/manifest.json", UNLISTED),
        ("domains.json", CONTENT),
    }


def test_bytes_are_told_while_they_are_read(folder: Path) -> None:
    total: list[int] = []
    read: list[int] = []
    verify_path(folder, total.append, read.append)
    assert total == [sum(read)] and total[0] > 0


def test_an_interrupt_is_not_waited_for(folder: Path) -> None:
    (folder / "a.gguf").unlink()
    writer = gguf.GGUFWriter(folder / "a.gguf", "deepseek")
    for number in range(2):
        writer.add_tensor(str(number), np.zeros(3 << 21, np.float32))  # 24 pieces
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    seal(folder)
    read: list[int] = []

    def interrupted(nbytes: int) -> None:
        read.append(nbytes)
        if nbytes == PIECE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(folder, interrupted)
    assert sum(read) < 24 * PIECE


def test_what_a_killed_run_left_of_a_manifest_is_no_file_of_the_folder(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    for name in ("manifest.json", ".manifest.json.partial"):
        (folder / name).write_text("cut", "utf-8")
    seal(folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert not (folder / ".manifest.json.partial").exists()
    (folder / "pruned.manifest.json").write_text("cut", "utf-8")
    (folder / ".pruned.manifest.json.partial").write_text("cut", "utf-8")
    assert not [path for path in files_in(folder, "pruned.manifest.json") if "pruned" in path.name]
