"""Calibration text as the command line takes it: stdin, a field, a seed, what is passed over."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from tests.kit.command import Emo
from tests.kit.synth import make_checkpoint

SPEC = "gguf:q4_0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", num_hidden_layers=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    bodies = [f"the harbour of town {n} was quiet in the morning " * 20 for n in range(30)]
    content = "".join(json.dumps({"body": body}) + "\n" for body in bodies)
    (folder / "towns.jsonl").write_text(content, "utf-8")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    return folder


def matrix(tiny: Path, out: Path, emo: Emo, *options: object) -> tuple[bytes, str, str]:
    """imatrix.gguf of an export, where the manifest says it is from, and stderr."""
    arguments = ("--to", SPEC, "--no-golden", "--calibration-tokens", 900, *options)
    done = emo("export", tiny, "-o", out, *arguments)
    assert done.code == 0, done.err
    about = Manifest.load(out).targets[SPEC].as_dict()["importance"]
    assert about["tokens"] == 900
    return (out / "imatrix.gguf").read_bytes(), about["source"], done.err


@pytest.mark.slow
def test_a_folder_a_field_and_a_seed(tiny: Path, corpus: Path, tmp_path: Path, emo: Emo) -> None:
    given = ("--calibration", corpus, "--field", "body")
    first, source, said = matrix(tiny, tmp_path / "a", emo, *given)
    assert source == "towns.jsonl"
    assert "note: text is read from towns.jsonl; passed over beside: 1 empty or not" in said
    assert "1 hidden, vendored or links to folders" in said
    again, _, said = matrix(
        tiny, tmp_path / "b", emo, "--calibration", corpus / "towns.jsonl", *given[2:]
    )
    assert again == first and "passed over" not in said
    other, _, _ = matrix(tiny, tmp_path / "c", emo, *given, "--seed", 7)
    assert other != first


def test_standard_input(
    tiny: Path, corpus: Path, tmp_path: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Piped:
        buffer = io.BytesIO((corpus / "towns.jsonl").read_bytes())

    monkeypatch.setattr(sys, "stdin", Piped)
    piped, source, _ = matrix(tiny, tmp_path / "a", emo, "--calibration", "-", "--field", "body")
    assert source == "stdin.jsonl"
    given = ("--calibration", corpus / "towns.jsonl", "--field", "body")
    named, source, _ = matrix(tiny, tmp_path / "b", emo, *given)
    assert source == "towns.jsonl" and named.replace(b"towns.jsonl", b"stdin.jsonl") == piped
    twice = emo("export", tiny, "-o", tmp_path / "c", "--to", SPEC, *("--calibration", "-") * 2)
    assert twice.code == 2 and "can be read only once" in twice.err


def test_heldout_text_has_the_field_too(tiny: Path, corpus: Path, tmp_path: Path, emo: Emo) -> None:
    out = ("export", tiny, "-o", tmp_path / "out", "--to", "gguf:f32", "--no-validate")
    refused = emo(*out, "--heldout", corpus)
    assert refused.code == 2 and 'has no "text" but "body"' in refused.err
    done = emo(*out, "--heldout", corpus, "--field", "body", "--heldout-tokens", 100)
    assert done.code == 0 and "passed over beside" in done.err
