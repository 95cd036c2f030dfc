"""The manifest, and that space is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from emo_export.base.disk import check_space
from emo_export.errors import EmoExportError
from emo_export.files.manifest import (
    ABSENT,
    CONTENT,
    SIZE,
    UNLISTED,
    Manifest,
    Problem,
    verify,
    write_manifest,
)
from emo_export.files.target_entry import TargetEntry
from emo_export.spec import GGUF, Spec


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.gguf").write_bytes(b"weights")
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "b.bin").write_bytes(b"more")
    target = TargetEntry(Spec(GGUF, "f32"), "a.gguf", {})
    write_manifest(folder, {"name": "x"}, {"emo-export": "0"}, {"gguf:f32": target})
    return folder


def test_every_file_is_digested(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    raw = json.loads((folder / "manifest.json").read_text())
    assert {f["path"] for f in raw["files"]} == {"a.gguf", "sub/b.bin"}
    (entry,) = [f for f in raw["files"] if f["path"] == "a.gguf"]
    assert entry == {
        "path": "a.gguf",
        "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert verify(folder) == []
    assert Manifest.load(folder).targets["gguf:f32"].path == "a.gguf"


def test_verify_names_what_differs(tmp_path: Path) -> None:
    folder = filled(tmp_path / "out")
    (folder / "a.gguf").write_bytes(b"weightz")
    size = (folder / "sub" / "b.bin").stat().st_size
    (folder / "sub" / "b.bin").write_bytes(b"longer than before")
    (folder / "extra").write_bytes(b"")
    problems = verify(folder)
    assert set(problems) == {
        Problem("a.gguf", CONTENT),
        Problem("sub/b.bin", SIZE, 18, size),
        Problem("extra", UNLISTED),
    }
    (folder / "a.gguf").unlink()
    assert Problem("a.gguf", ABSENT) in verify(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("files"),
        lambda raw: raw.update(version=2),
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


def test_space_is_checked_against_the_disk(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(EmoExportError, match="free"):
        check_space(tmp_path, 1 << 60)
