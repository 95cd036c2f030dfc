"""Names that are commands elsewhere, in a checkpoint and its paths, and where they come out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from markdown_it import MarkdownIt  # rich needs it, too
from safetensors.numpy import load_file, save_file

from tests.kit.command import NOT_FAILED, Emo, run_here
from tests.kit.paths import NANO, ROOT
from tests.kit.synth import make_checkpoint

HOSTILE = (
    "\x1b[2J\x1b]0;t\x07</script><script>alert(1)</script>$(touch ran)`touch ran`;touch ran;"
    '\'"""\nFROM x\n# h\n[bold][/][link=x]\u202e|\r--- -oProxyCommand=touch'
)
NAME = HOSTILE.replace("/", "_")
"""As a file's name, which has no slash."""
NO_TEXT = os.fsdecode(b"\xff")
"""As one whose bytes are no text, which engines and onnx don't open."""
FOREIGN = {"script", "img", "iframe", "a"}
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")


def hostile_checkpoint(folder: Path) -> Path:
    """Strings of all files that a checkpoint has beside its weights."""
    make_checkpoint(folder, num_hidden_layers=1, vocab_size=512)
    _change(folder / "config.json", _name_or_path=HOSTILE, architectures=[HOSTILE])
    _change(folder / "generation_config.json", transformers_version=HOSTILE)
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in tokens["added_tokens"]:
        token["content"] = f"<|{token['id']}{HOSTILE}|>"
    (folder / "tokenizer.json").write_text(json.dumps(tokens), "utf-8")
    _change(
        folder / "tokenizer_config.json", name_or_path=HOSTILE, chat_template=f"{{# {HOSTILE} #}}"
    )
    pruned = {
        "original_model": HOSTILE,
        "prune_keep_k": 8,
        "num_shared_experts": 1,
        "pruning_method": HOSTILE,
        "experts_kept_per_layer": [list(range(8))],
    }
    (folder / "pruning_metadata.json").write_text(json.dumps(pruned), "utf-8")
    return folder


def _change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | values), "utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def harmless(text: str) -> None:
    assert not RAW.search(text), RAW.search(text)


def test_a_hostile_checkpoint_is_told_of_as_text(tmp_path: Path, emo: Emo) -> None:
    folder = tmp_path / f"checkpoint{NAME}{NO_TEXT}"
    hostile_checkpoint(tmp_path / "made").rename(folder)
    for arguments in (("inspect", folder), ("plan", folder, "--to", "gguf:q4_0")):
        done = emo(*arguments)
        assert done.code == 0, done.err
        harmless(done.out + done.err)


@pytest.mark.slow
def test_hostile_names_come_out_as_text(
    tmp_path: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / f"checkpoint{NAME}{NO_TEXT}"
    hostile_checkpoint(tmp_path / "made").rename(folder)
    text = tmp_path / f"text{NAME}{NO_TEXT}.txt"
    text.write_text("The end of the text. " * 40, "utf-8")
    out = tmp_path / f"out{NAME}"
    told = []

    def run(*arguments: object) -> str:
        done = emo(*arguments)
        assert done.code in NOT_FAILED, done.err
        told.extend([done.out, done.err])
        return done.out

    targets = ("--to", "gguf:q4_k_s", "--to", "onnx:int4")
    run("export", folder, "-o", out, *targets, "--heldout", text, "--calibration", text)
    run("inspect", out)
    run("verify", out)
    html, junit = tmp_path / f"page{NAME}{NO_TEXT}.html", tmp_path / f"junit{NAME}{NO_TEXT}.xml"
    run("validate", out, "--html", html, "--junit", junit)
    run("run", out, "-p", "The", "-n", "2")
    for arguments in (("export", folder, "-o", f"{out}{NO_TEXT}", *targets), ("verify", folder)):
        done = emo(*arguments)
        assert done.code in (1, 2)
        told.append(done.err)
    assert "is not UTF-8" in told[-2]
    for each in told:
        harmless(each)

    card = (out / "README.md").read_text("utf-8")
    harmless(card)
    rendered = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert Tags(rendered).found.count("h1") == 1 and not FOREIGN & set(Tags(rendered).found)
    modelfile = (out / "model-Q4_K_S.Modelfile").read_text("utf-8")
    assert modelfile.count("FROM") == 1 and "\x1b" not in modelfile
    page = html.read_text("utf-8")
    harmless(page)
    assert not FOREIGN & set(Tags(page).found)
    harmless(junit.read_text("utf-8"))
    ET.parse(junit)
    assert not list(tmp_path.rglob("ran")) and not (ROOT / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", f"missing{NAME}"), "missing"),
        (("export", f"missing{NAME}", "-o", "x", "--to", "gguf:q4_0"), "missing"),
        (("export", str(NANO), "-o", "y", "--to", HOSTILE), "script"),
        (("verify", f"missing{NAME}"), "missing"),
        (("device", "clean", "ssh://-oProxyCommand=touch ran"), "host"),
        (("device", "clean", "ssh://-oProxyCommand=touch@x"), "user"),
        (("device", "clean", "ssh://x:22$(touch ran)"), "port"),
        (("device", "clean", f"ssh://{HOSTILE}"), "ssh"),
        (("device", "clean", f"adb:{HOSTILE}"), ""),
        (("run", ".", "-p", "x", "--target", HOSTILE), ""),
        ((HOSTILE,), "script"),
    ],
    ids=[f"arguments {number}" for number in range(11)],
)
def test_hostile_arguments_are_refused_as_text(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    emo: Emo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = emo(*arguments)
    assert done.code in (2, 3) and words in done.err and "Traceback" not in done.err
    harmless(done.out + done.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", HOSTILE), (HOSTILE, 1), ("model_type", HOSTILE)], ids=ascii
)
def test_a_hostile_config_is_refused_as_text(
    key: str, value: object, synth: Path, tmp_path: Path, emo: Emo
) -> None:
    _change(synth / "config.json", **{key: value})
    done = emo("export", synth, "-o", tmp_path / "out", "--to", "gguf:q4_0")
    assert done.code == 2 and "Traceback" not in done.err and "script" in done.err
    harmless(done.out + done.err)


def test_hostile_tensors_are_refused_as_text(synth: Path, tmp_path: Path, emo: Emo) -> None:
    tensors = load_file(synth / "model.safetensors")
    save_file(tensors | {HOSTILE: np.zeros((2, 2), np.float32)}, synth / "model.safetensors")
    for arguments in (
        ("export", synth, "-o", tmp_path / "out", "--to", "gguf:q4_0"),
        ("inspect", synth),
    ):
        done = emo(*arguments)
        assert "Traceback" not in done.err and "script" in done.err + done.out
        harmless(done.out + done.err)


def test_a_hostile_gguf_is_told_of_as_text(tmp_path: Path, emo: Emo) -> None:
    path = tmp_path / f"model{NAME}{NO_TEXT}.gguf"
    writer = gguf.GGUFWriter(tmp_path / "made.gguf", "deepseek")
    writer.add_name(HOSTILE)
    writer.add_string(f"emo.{HOSTILE}", HOSTILE)
    writer.add_token_list([HOSTILE, "b"])
    writer.add_chat_template(HOSTILE)
    writer.add_tensor(f"blk.0.{HOSTILE[:40]}", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "made.gguf").rename(path)
    for arguments in (("inspect", path), ("inspect", path, "--json"), ("run", path, "-p", "x")):
        done = emo(*arguments)
        assert done.code in (0, 2) and "Traceback" not in done.err
        harmless(done.out + done.err)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_writes_moves_no_terminal(terminal: bool, tmp_path: Path) -> None:
    """A head that knows two tokens, ESC and BEL, of which one is always the likelier."""
    folder = make_checkpoint(tmp_path / "made", num_hidden_layers=1, vocab_size=512)
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    tensors = load_file(folder / "model.safetensors")
    head = np.zeros_like(tensors["lm_head.weight"])
    head[vocabulary["\u011b"]] = 1  # byte-level BPE spells 0x1b and 0x07 so
    head[vocabulary["\u0107"]] = -1
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    assert run_here("export", folder, "-o", tmp_path / "out", "--to", "gguf:f32").code in NOT_FAILED
    command = [sys.executable, "-m", "emo_export.cli.main", "run", str(tmp_path / "out")]
    ours, theirs = os.openpty() if terminal else os.pipe()
    try:
        done = subprocess.run(
            [*command, "-p", "x", "-n", "5", "--temperature", "0"],
            stdout=theirs,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        written = os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stderr
    raw, spelled = {b"\x1b", b"\x07"}, {rb"\x1b", rb"\x07"}
    assert any(each in written for each in spelled) == terminal
    assert any(each in written for each in raw) != terminal
