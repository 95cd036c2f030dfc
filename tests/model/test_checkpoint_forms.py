"""Checkpoints as people have them: other names, stacks, buffers, a tied head, pickles."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import TokenType
from safetensors.torch import load_file, save_file

from emo_export.converters.gguf.tokenizer import read_tokenizer
from emo_export.errors import EmoExportError
from emo_export.inspect.checkpoint import inspect_path
from emo_export.model.checkpoint import CONVERSION, SINGLE, Checkpoint
from emo_export.model.notes import Note, NoteKind
from emo_export.report.checkpoint import note
from emo_export.text.tokenizer import CONVERSION as TOKENIZER
from tests.kit.command import Emo
from tests.kit.exporting import export_to
from tests.kit.paths import GOLDEN
from tests.kit.synth import CONFIGS, LLAMA3, make_checkpoint

Tensors = dict[str, torch.Tensor]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INV_FREQ = "model.rotary_emb.inv_freq"


def rewritten(folder: Path, change: Callable[[Tensors], Tensors | None]) -> Tensors:
    """The tensors of a checkpoint, after its file was written again with `change` made to them."""
    before = load_file(folder / SINGLE)
    changed = dict(before)
    changed = change(changed) or changed
    save_file({name: t.contiguous().clone() for name, t in changed.items()}, folder / SINGLE)
    return before


def assert_holds(folder: Path, truth: Tensors) -> Checkpoint:
    """The checkpoint has exactly these tensors, by name and bit by bit in float32."""
    opened = Checkpoint.open(folder)
    assert set(opened) == set(truth)
    for name, tensor in opened.items():
        wide = truth[name].float().numpy()
        assert tensor.shape == wide.shape
        rows = tensor.rows(0, len(wide) if wide.ndim > 1 else 1)
        np.testing.assert_array_equal(rows.reshape(wide.shape).view("u4"), wide.view("u4"))
    return opened


def refusal(folder: Path, *words: str) -> None:
    with pytest.raises(EmoExportError) as caught:
        Checkpoint.open(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


# --- names -----------------------------------------------------------------------------------


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


WRAPPED: dict[str, Callable[[str], str]] = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod._checkpoint_wrapped_module.": lambda name: name.replace(
        "model.", "model._orig_mod.", 1
    ).replace("mlp.", "mlp._checkpoint_wrapped_module."),
    "model.": lambda name: f"model.{name}",
    "module.model.": lambda name: f"module.model.{name}",
}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_under_a_wrapper_s_prefix_are_recognised(prefix: str, synth: Path) -> None:
    truth = rewritten(synth, renamed(WRAPPED[prefix]))
    opened = assert_holds(synth, truth)
    assert {found.kind for found in opened.notes} == {NoteKind.WRAPPED}
    assert sum(found.count for found in opened.notes) <= len(truth)
    assert prefix in {found.prefix for found in opened.notes}
    assert opened.notes[0].first in load_file(synth / SINGLE)


def test_two_tensors_of_one_name_are_refused(synth: Path) -> None:
    rewritten(synth, lambda t: t | {f"module.{HEAD}": t[HEAD]})
    refusal(synth, HEAD, f"module.{HEAD}", "both are")


@pytest.mark.parametrize("prefix", ["policy.", "base_model.model.", "transformer.", "modules."])
def test_an_unknown_prefix_is_refused(prefix: str, synth: Path) -> None:
    rewritten(synth, renamed(lambda name: prefix + name))
    refusal(synth, prefix, "is extra")


# --- stacks of experts -----------------------------------------------------------------------


def stacked(tensors: Tensors) -> Tensors:
    """As transformers 5 keeps experts: `gate, up = linear(x, gate_up_proj[e]).chunk(2)`."""
    out = {name: t for name, t in tensors.items() if ".experts." not in name}
    for layer in range(64):
        mlp = f"model.layers.{layer}.mlp.experts"
        count = sum(name.startswith(f"{mlp}.") for name in tensors) // 3
        if not count:
            continue
        part = {
            role: [tensors[f"{mlp}.{e}.{role}_proj.weight"] for e in range(count)]
            for role in ("gate", "up", "down")
        }
        pairs = zip(part["gate"], part["up"], strict=True)
        out[f"{mlp}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        out[f"{mlp}.down_proj"] = torch.stack(part["down"])
    return out


@pytest.mark.parametrize(
    "name", ["mha", "odd_48_20", "dense_middle", "per_layer_odd_counts", "bf16", "f16"]
)
def test_stacked_experts_are_read_where_they_lie(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **CONFIGS[name])
    truth = rewritten(folder, stacked)
    opened = assert_holds(folder, truth)
    assert opened.notes == ()
    # Every byte of the file once: gate and up of an expert are no part of each other.
    spans = sorted((t.offset, t.offset + t.nbytes) for t in opened.values())
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] == (folder / SINGLE).stat().st_size
    down = "model.layers.0.mlp.experts.1.down_proj.weight"
    np.testing.assert_array_equal(opened[down].rows(3, 5), truth[down][3:5].float().numpy())


def test_stacked_experts_are_exported_to_the_same_bytes(tmp_path: Path) -> None:
    # D = 2F, so that gate_up_proj is a stack of squares: nothing is told by sizes.
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    plain = export_to(tmp_path / "plain", folder, gguf=["f32"])["gguf:f32"].read_bytes()
    rewritten(folder, lambda tensors: renamed(WRAPPED["module."])(stacked(tensors)))
    again = export_to(tmp_path / "stacked", folder, gguf=["f32"])["gguf:f32"].read_bytes()
    assert again == plain


def test_a_stack_of_another_form_is_refused(tmp_path: Path) -> None:
    down = "model.layers.1.mlp.experts.down_proj"

    def change(make: Callable[[Tensors], Mapping[str, torch.Tensor]], *words: str) -> None:
        folder = make_checkpoint(tmp_path, num_experts=4)
        rewritten(folder, lambda tensors: stacked(tensors) | dict(make(tensors)))
        refusal(folder, down, *words)

    whole = (4, 64, 32)
    change(lambda t: {down: torch.zeros(whole).mT}, "transpose")
    change(lambda t: {down: torch.zeros(5, 64, 32)}, "[5, 64, 32]", "[4, 64, 32]")
    change(lambda t: {down: torch.zeros(4 * 64, 32)}, "[256, 32]")
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    change(lambda t: {name: t[name]}, name, "remove one")
    change(lambda t: {down + ".weight": t[EMBED]}, "is extra")


# --- what the config determines --------------------------------------------------------------


def frequencies(theta: float = 500000.0, size: int = 16) -> torch.Tensor:
    """As transformers computes them, in float32."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_buffers_that_agree_are_passed_over(dtype: torch.dtype, synth: Path) -> None:
    angles = torch.outer(torch.arange(9000).float(), frequencies())
    table = torch.cat([angles, angles], dim=-1)
    rotary = "model.layers.1.self_attn.rotary_emb"
    buffers = {
        INV_FREQ: frequencies(),
        f"{rotary}.inv_freq": frequencies(),
        f"{rotary}.cos_cached": table.cos()[None, None],
        f"module.{rotary}.sin_cached": table.sin(),
    }
    truth = rewritten(synth, lambda t: t | {name: b.to(dtype) for name, b in buffers.items()})
    notes = {found.kind: found for found in assert_holds(synth, truth).notes}
    assert notes[NoteKind.BUFFERS] == Note(NoteKind.BUFFERS, 4, notes[NoteKind.BUFFERS].first)
    assert (NoteKind.FLOAT64 in notes) == (dtype == torch.float64)


def test_scaled_frequencies_are_passed_over(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    rewritten(folder, lambda t: t | {INV_FREQ: frequencies() / 4})
    assert [found.kind for found in Checkpoint.open(folder).notes] == [NoteKind.BUFFERS]
    make_checkpoint(folder, rope_scaling=LLAMA3)
    rewritten(folder, lambda t: t | {INV_FREQ: frequencies()})
    refusal(folder, INV_FREQ, "llama3")


OTHERS: dict[str, dict[str, torch.Tensor]] = {
    "theta": {INV_FREQ: frequencies(10000.0)},
    "one value": {INV_FREQ: frequencies() * (1 + 1e-4 * (torch.arange(8) == 5))},
    "length": {INV_FREQ: frequencies(size=32)},
    "rank": {INV_FREQ: frequencies()[None]},
    "interleaved": {
        "model.rotary_emb.cos_cached": torch.outer(torch.arange(50).float(), frequencies())
        .repeat_interleave(2, dim=-1)
        .cos()
    },
    "not a number": {INV_FREQ: frequencies() * float("nan")},
    "layer": {"model.layers.2.self_attn.rotary_emb.inv_freq": frequencies()},
    "other buffer": {"model.layers.1.mlp.gate.e_score_correction_bias": torch.zeros(8)},
}


@pytest.mark.parametrize("case", OTHERS)
def test_buffers_that_differ_are_refused(case: str, synth: Path) -> None:
    rewritten(synth, lambda tensors: tensors | OTHERS[case])
    refusal(synth, *OTHERS[case])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_that_equals_the_embedding_is_passed_over(dtype: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, dtype=dtype, tie_word_embeddings=True)
    truth = rewritten(folder, lambda t: t | {HEAD: t[EMBED]})
    assert assert_holds(folder, truth).notes == (Note(NoteKind.TIED_HEAD, 1, HEAD),)


def test_a_tied_head_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emo_export.model.names.PIECE_BYTES", 4 * 64 * 100)  # six pieces
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)
    for row in (0, 99, 100, 511):
        step = 1e-6 * (torch.arange(512) == row)[:, None]
        rewritten(folder, lambda t, step=step: t | {HEAD: t[EMBED] + step})  # type: ignore[misc]
        refusal(folder, HEAD, EMBED, f"row {row} first", "tie_word_embeddings")
    rewritten(folder, lambda t: t | {HEAD: torch.zeros(500, 64)})
    refusal(folder, HEAD, "[500, 64]")


# --- types and files -------------------------------------------------------------------------


def test_float64_is_read_as_float32(synth: Path) -> None:
    def widened(tensors: Tensors) -> Tensors:
        return {n: t.double() * (1 + 1e-9) for n, t in tensors.items()}

    rewritten(synth, widened)
    truth = load_file(synth / SINGLE)
    opened = assert_holds(synth, truth)
    assert opened.nbytes == sum(t.numel() * 8 for t in truth.values())
    assert [(found.kind, found.count) for found in opened.notes] == [(NoteKind.FLOAT64, len(truth))]
    rewritten(synth, lambda t: t | {"model.norm.weight": t["model.norm.weight"] * 1e39})
    with pytest.raises(EmoExportError, match="beyond float32"):
        Checkpoint.open(synth)["model.norm.weight"].rows(0, 1)


def test_json_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", shards=2, num_hidden_layers=1)
    plain = export_to(tmp_path / "plain", folder, gguf=["f32"], onnx=["f32"])
    for file in folder.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = export_to(tmp_path / "marked", folder, gguf=["f32"], onnx=["f32"])
    assert marked["gguf:f32"].read_bytes() == plain["gguf:f32"].read_bytes()
    for file in plain["onnx:f32"].iterdir():
        assert (marked["onnx:f32"] / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("shards", [1, 2])
def test_the_line_that_converts_pickles_does(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)
    truth = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    held = truth | {HEAD: truth[EMBED]}  # one storage for both, as torch.save keeps it
    names = list(held)
    for shard in range(shards):
        file = f"pytorch_model-0000{shard + 1}-of-00002.bin" if shards > 1 else "pytorch_model.bin"
        torch.save({name: held[name] for name in names[shard::shards]}, folder / file)
    refusal(folder, CONVERSION)
    program, option, line = shlex.split(CONVERSION)
    assert (program, option) == ("python", "-c")
    monkeypatch.chdir(folder)
    exec(line, {})  # noqa: S102  it is our own line
    assert [found.kind for found in assert_holds(folder, truth).notes] == [NoteKind.TIED_HEAD]


def test_the_line_that_makes_a_tokenizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emo: Emo
) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1, eos_token_id=490)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    vocab = model["vocab"] | {"<|endoftext|>": 490}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    done = emo("export", folder, "-o", tmp_path / "out", "--to", "gguf:f32", "--no-golden")
    assert done.code == 0 and TOKENIZER in done.err
    assert TOKENIZER in " ".join(inspect_path(folder).warnings)
    for option in ("--calibration", "--heldout"):
        place = (folder / "merges.txt", "-o", tmp_path / "no", "--to", "gguf:f32")
        done = emo("export", folder, option, *place)
        assert done.code == 2 and TOKENIZER in done.err and option in done.err
    monkeypatch.chdir(folder)
    exec(shlex.split(TOKENIZER)[2], {})  # noqa: S102  it is our own line
    made = read_tokenizer(folder, Checkpoint.open(folder).config)
    assert made is not None and (made.pre, made.stops) == ("gpt-2", (490,))
    assert made.tokens[:491] == tuple(sorted(vocab, key=vocab.__getitem__))
    assert made.types[490] == TokenType.CONTROL and made.merges == tuple(merges)


# --- what is told ----------------------------------------------------------------------------


def test_notes_are_told(tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1, tie_word_embeddings=True)
    rewritten(
        folder,
        lambda t: {
            f"module.{name}": tensor.double()
            for name, tensor in (t | {HEAD: t[EMBED], INV_FREQ: frequencies()}).items()
        },
    )
    told = {found.kind: note(found) for found in Checkpoint.open(folder).notes}
    assert set(told) == set(NoteKind)
    assert "module." in told[NoteKind.WRAPPED] and INV_FREQ in told[NoteKind.BUFFERS]
    done = emo("export", folder, "-o", tmp_path / "out", "--to", "gguf:f32", "--no-golden")
    assert done.code == 0, done.err
    for sentence in told.values():
        assert f"note: {folder}: {sentence}" in done.err
    done = emo("inspect", folder)
    assert all(sentence in " ".join(done.out.split()) for sentence in told.values())
    notes = json.loads(emo("inspect", folder, "--json").out)["notes"]
    assert {found["kind"] for found in notes} == set(NoteKind)
    assert emo("inspect", GOLDEN / "base").out.count("note:") == 0
