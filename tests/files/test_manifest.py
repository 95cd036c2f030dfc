"""The manifest, and that space is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from emo_export.base.disk import allocated, check_space
from emo_export.errors import EmoExportError
from emo_export.files.manifest import Manifest, Origin, write_manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.files.verifying import verify
from emo_export.spec import GGUF, Spec


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.bin").write_bytes(b"weights")
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "b.bin").write_bytes(b"more")
    target = TargetEntry(Spec(GGUF, "f32"), "a.bin", {})
    origin = Origin({"name": "x"}, {"emo-export": "0"}, command="emo-export export x -o out")
    write_manifest(folder, origin, {"gguf:f32": target})
    return folder


def test_every_file_is_digested(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    raw = json.loads((folder / "manifest.json").read_text())
    assert {f["path"] for f in raw["files"]} == {"a.bin", "sub/b.bin"}
    (entry,) = [f for f in raw["files"] if f["path"] == "a.bin"]
    assert entry == {
        "path": "a.bin",
        "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert verify(folder) == []
    assert Manifest.load(folder).targets["gguf:f32"].path == "a.bin"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("files"),
        lambda raw: raw.update(version=3),
        lambda raw: raw.update(version=True),
        lambda raw: raw.pop("inputs"),
        lambda raw: raw.update(inputs=[{"path": "/dev/zero", "bytes": 1, "sha256": ""}]),
        lambda raw: raw.update(inputs=[{"path": "a/../../b", "bytes": 1, "sha256": ""}]),
        lambda raw: raw.update(inputs={"path": "a"}),
        lambda raw: raw.update(command=["rm"]),
        lambda raw: raw.update(files=[raw["files"][0]] * 2),
        lambda raw: raw["files"][0].update(bytes=-1),
        lambda raw: raw["files"][0].update(parts=[["tensor", "a", 5, 9, ""]]),
        lambda raw: raw["files"][0].update(parts=[["tensor", "a", 0, 4, ""]] * 2),
        lambda raw: raw.update(files=[{"path": "../../etc/passwd", "bytes": 1, "sha256": ""}]),
        lambda raw: raw.update(targets={"gguf:f32": {"path": "../secret.gguf"}}),
        lambda raw: raw.update(targets=[]),
        lambda raw: raw.update(files=3),
    ],
)
def test_a_wrong_manifest_is_refused(change: object, tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)  # type: ignore[operator]
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(EmoExportError, match=r"manifest\.json"):
        Manifest.load(folder)


def test_a_manifest_of_the_first_version_is_read(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    raw = json.loads((folder / "manifest.json").read_text())
    old = {"version": 1} | {name: raw[name] for name in ("source", "tools", "targets", "files")}
    (folder / "manifest.json").write_text(json.dumps(old, indent=2) + "\n")
    assert Manifest.load(folder).source == {"name": "x"}
    assert verify(folder) == []
    (folder / "a.bin").write_bytes(b"weightz")
    assert [one.path for one in verify(folder)] == ["a.bin"]


def test_space_is_checked_against_the_disk(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(EmoExportError, match="free"):
        check_space(tmp_path, 1 << 60)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "full").write_bytes(b"x" * 10_000)
    assert 10_000 <= allocated(tmp_path) < 1 << 20
