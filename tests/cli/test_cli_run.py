"""`run`: where the prompt comes from, what is told beside the text, events."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.kit.command import Emo
from tests.kit.paths import GOLDEN

GREEDY = ("--temperature", 0, "-n", 8, "--target", "gguf:f32")


class Piped(io.StringIO):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.buffer = io.BytesIO(text.encode())  # type: ignore[assignment]


def test_a_prompt_comes_from_many_places(
    package: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = emo("run", package, "def f", *GREEDY).out
    assert len(want) > 4
    assert emo("run", package, "-p", "def f", *GREEDY).out == want
    for dash in ([], ["-"], ["-p", "-"]):
        monkeypatch.setattr(sys, "stdin", Piped("def f\n"))
        assert emo("run", package, *dash, *GREEDY).out == want
    twice = emo("run", package, "a", "-p", "b", *GREEDY)
    assert twice.code == 2 and "given twice" in twice.err
    monkeypatch.setattr(Piped, "isatty", lambda self: True)
    monkeypatch.setattr(sys, "stdin", Piped("def f\n"))
    none = emo("run", package, *GREEDY)
    assert none.code == 2 and 'emo-export run out "def main("' in none.err
    typed = emo("run", package, "-", *GREEDY)
    assert typed.out == want and "Ctrl-D ends it" in typed.err


def test_figures_go_to_stderr_and_quiet_silences_them(package: Path, emo: Emo) -> None:
    told = emo("run", package, "def f", *GREEDY)
    assert "8 written at" in told.err and "tokens read at" in told.err and "MB at most" in told.err
    assert emo("run", package, "def f", *GREEDY, "-q").err == ""


def test_another_text_each_time_and_the_same_with_the_seed_that_is_told(
    package: Path, emo: Emo
) -> None:
    draw = ("run", package, "def f", "--temperature", 5, "-n", 24, "--target", "gguf:f32")
    one, two = emo(*draw), emo(*draw)
    assert one.out != two.out
    seed = one.err.split("seed ")[-1].strip()
    assert emo(*draw, "--seed", seed).out == one.out


def test_events(package: Path, emo: Emo) -> None:
    text = emo("run", package, "def f", *GREEDY).out.removesuffix("\n")
    done = emo("run", package, "def f", *GREEDY, "--json", "--logprobs")
    *tokens, end = map(json.loads, done.out.splitlines())
    assert "".join(event["text"] for event in tokens) == text and done.err == ""
    assert all(event["logprob"] < 0 for event in tokens if event["id"] is not None)
    assert (end["event"], end["reason"], end["tokens"]) == ("end", "length", 8)
    assert end["prompt_tokens"] > 0 and end["decode_seconds"] > 0
    assert end["peak_memory_bytes"] > 1e6
    alone = emo("run", package, "a", "--logprobs")
    assert alone.code == 2 and "--json" in alone.err


def test_a_stop_string_and_a_full_context(package: Path, emo: Emo) -> None:
    text = emo("run", package, "def f", *GREEDY).out
    stop = text[4:6]
    ended = emo("run", package, "def f", *GREEDY, "--stop", stop)
    assert ended.out == text[: text.index(stop)] + "\n"
    full = emo("run", package, "def f", "-n", 2000, "--target", "onnx:f32", "--seed", 1)
    assert full.code == 0 and "the context is full: 512 positions" in full.err


def test_what_is_no_package_is_told_what_to_do(emo: Emo) -> None:
    for command in ("run", "validate", "bench"):
        given = ("a",) if command == "run" else ()
        done = emo(command, GOLDEN / "base", *given)
        assert done.code == 2 and "is a checkpoint; export it first: emo-export export" in done.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("q4_k_m", "gguf:q4_k_m"),
        ("int4", "onnx:int4"),
        ("gguf:q4km", "gguf:q4_k_m"),
        ("onnx:in4", "onnx:int4"),
        ("ggf:q8_0", "gguf:q8_0"),
    ],
)
def test_a_slip_in_a_target_is_told_what_was_meant(
    typed: str, meant: str, tmp_path: Path, emo: Emo
) -> None:
    for line in (("export", GOLDEN / "base", "-o", tmp_path / "x"), ("plan", GOLDEN / "base")):
        done = emo(*line, "--to", typed)
        assert done.code == 2 and f"did you mean {meant}?" in done.err, done.err
