"""onnxruntime-genai generates from every graph what the reference generates."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.reference.passes import greedy
from emo_export.runtimes.ort.model import OnnxModel
from tests.kit.exporting import TIGHT, Array, assert_same, case, export_to, exported
from tests.kit.genai import generate
from tests.kit.oracle import oracle_logits
from tests.kit.paths import NANO
from tests.kit.synth import make_checkpoint
from tests.kit.tiers import slow_beyond

GRAPHS = ("", "@if", "@standard")
PROMPTS = {"code": [341, 3774, 7], "prose": [605, 1092, 1207, 283, 3424, 279, 78, 87, 875, 401]}
TOKENS = 16


@functools.cache
def reference(name: str) -> list[int]:
    """What the torch reference says after a prompt of PROMPTS."""
    checkpoint = Checkpoint.open(NANO)
    ids = np.array(PROMPTS[name], np.int64)
    return greedy(checkpoint.config, Product.whole(checkpoint).rows, ids, TOKENS).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_trained_model_says_what_the_reference_says(graph: str, name: str) -> None:
    found = generate(exported(NANO, f"onnx:f32{graph}"), [PROMPTS[name]], TOKENS)
    assert found.tokens.tolist() == [reference(name)]


# Head sizes of 16 with fewer keys than queries; of 24 and 12, which GroupQueryAttention can't take.
@pytest.mark.parametrize("name", ["gqa", "head_dim", "odd_36_32"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_its_logits_are_the_oracle_s(graph: str, name: str) -> None:
    made = case(name)
    prompts = made.ids[:, :9]  # two in a batch
    found = generate(exported(made.folder, f"onnx:f32{graph}"), prompts.tolist(), 7)
    want, _ = oracle_logits(made.folder, np.concatenate([prompts, found.tokens], axis=1))
    assert_same(want[:, 8:-1], found.logits, TIGHT)
    np.testing.assert_array_equal(found.tokens, want[:, 8:-1].argmax(-1))


def ours(folder: Path, prompt: list[int], tokens: int) -> tuple[list[int], Array]:
    """The greedy tokens of our own runtime, and their logits."""
    model = OnnxModel(folder, threads=1)
    said: list[int] = []
    # onnxruntime-genai asks for all positions, and int8@standard quantises them together.
    rows = [model.forward(np.array(prompt))[-1]]
    while len(said) < tokens:
        said.append(int(rows[-1].argmax()))
        rows.append(model.forward(np.array(said[-1:]), last=True)[0])
    model.close()
    return said, np.stack(rows[:-1])


@pytest.mark.parametrize(
    "target",
    slow_beyond(["int4", "int8@if"], ["int4", "int8", "int4@if", "int8@if", "int8@standard"]),
)
def test_quantised_graphs_say_what_our_runtime_says(target: str) -> None:
    folder, prompt = exported(NANO, f"onnx:{target}"), PROMPTS["code"]
    found, (tokens, logits) = generate(folder, [prompt], TOKENS), ours(folder, prompt, TOKENS)
    assert found.tokens.tolist() == [tokens]
    assert_same(logits[None], found.logits, 1e-9)


@pytest.mark.parametrize("graph", GRAPHS)
def test_logits_of_the_last_position_by_default(graph: str, tmp_path: Path) -> None:
    folder = case("gqa").folder
    made = export_to(tmp_path, folder, onnx=[f"f32{graph}"], last_only=True)[f"onnx:f32{graph}"]
    prompts = case("gqa").ids[:, :9].tolist()
    found, all_positions = (
        generate(path, prompts, 7) for path in (made, exported(folder, f"onnx:f32{graph}"))
    )
    np.testing.assert_array_equal(found.tokens, all_positions.tokens)
    np.testing.assert_allclose(found.logits, all_positions.logits, atol=1e-5)


def test_a_second_prompt_after_a_text() -> None:
    folder, first, second = exported(NANO, "onnx:f32"), *PROMPTS.values()
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=60)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(first, np.int32))
    for _ in range(4):
        generator.generate_next_token()
    generator.get_logits()  # else 0.18 leaves the last token out (README)
    generator.append_tokens(np.array(second, np.int32))
    so_far = len(generator.get_sequence(0))
    for _ in range(6):
        generator.generate_next_token()
    text = generator.get_sequence(0).tolist()
    prompt = [*first, *reference("code")[:4], *second]
    assert so_far == len(prompt) and text[:so_far] == prompt
    assert text[so_far:] == ours(folder, prompt, 6)[0]
    generator.rewind_to(len(first))
    generator.append_tokens(np.array(second, np.int32))
    for _ in range(6):
        generator.generate_next_token()
    assert generator.get_sequence(0)[-6:].tolist() == ours(folder, [*first, *second], 6)[0]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("hidden", [64, 32], ids=["fused", "standard"])
def test_the_context_is_the_end(hidden: int, graph: str, tmp_path: Path) -> None:
    settings = {"hidden_size": hidden, "max_position_embeddings": 24, "num_hidden_layers": 1}
    checkpoint = make_checkpoint(tmp_path / "model", **settings)
    folder = export_to(tmp_path, checkpoint, onnx=[f"f32{graph}"])[f"onnx:f32{graph}"]
    prompt = np.arange(5, 25)
    found = generate(folder, [prompt.tolist()], 4)
    want, _ = oracle_logits(checkpoint, np.concatenate([prompt, found.tokens[0]])[None])
    assert_same(want[:, 19:-1], found.logits, TIGHT)
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    generator = og.Generator(model, params)  # its max_length is the context
    with pytest.raises(RuntimeError, match=r"\(25\).* exceeds max length \(24\)"):
        generator.append_tokens(np.arange(25, dtype=np.int32))
    generator.append_tokens(np.arange(24, dtype=np.int32))
    with pytest.raises(RuntimeError, match="already at max_length"):
        generator.generate_next_token()
    params.set_search_options(max_length=25)
    with pytest.raises(RuntimeError, match="cannot be greater than model context_length"):
        og.Generator(model, params)


def test_a_text_ends_at_each_of_the_stop_tokens(tmp_path: Path) -> None:
    made = case("gqa")
    prompt = made.ids[:1, :9].tolist()
    said = generate(exported(made.folder, "onnx:f32"), prompt, 8).tokens[0].tolist()
    place = next(i for i in range(1, 8) if said[i] not in said[:i])
    checkpoint = make_checkpoint(
        tmp_path / "model", num_key_value_heads=2, eos_token_id=[500, said[place]]
    )
    folder = export_to(tmp_path, checkpoint, onnx=["f32"])["onnx:f32"]
    found = generate(folder, prompt, 8).tokens[0].tolist()
    assert found[:place] == said[:place] and found[place:] in ([], [said[place]])


@pytest.mark.parametrize("pad", [None, 7], ids=["no pad", "the pad ends texts"])
def test_what_looks_like_padding_is_read(pad: int | None, tmp_path: Path) -> None:
    settings = {"eos_token_id": 7, "pad_token_id": pad, "num_hidden_layers": 1}
    checkpoint = make_checkpoint(tmp_path / "model", **settings)
    folder = export_to(tmp_path, checkpoint, onnx=["f32", "int4"])["onnx:f32"]
    for prompt in ([7], [0], [9, 8, 7], [9, 8, 0], [9, 511]):
        found = generate(folder, [prompt], 3)
        want, _ = oracle_logits(checkpoint, np.array([[*prompt, *found.tokens[0]]]))
        assert_same(want[:, len(prompt) - 1 : -1], found.logits, TIGHT)


def beams_of(folder: Path, prompt: list[int], width: int, tokens: int) -> list[list[int]]:
    """The best texts of a beam search, by our own runtime without a cache."""
    model = OnnxModel(folder, threads=1)
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(tokens):
        grown = []
        for score, said in beams:
            model.reset()
            logits = model.forward(np.array(prompt + said), last=True)[0].astype(np.float64)
            chances = logits - np.logaddexp.reduce(logits)
            grown += [(score + chances[t], [*said, int(t)]) for t in np.argsort(-chances)[:width]]
        beams = sorted(grown, reverse=True)[:width]
    model.close()
    return [said for _, said in beams]


@pytest.mark.parametrize("graph", slow_beyond(GRAPHS[:1], GRAPHS))
def test_beam_search(graph: str) -> None:
    folder, prompt = exported(NANO, f"onnx:f32{graph}"), PROMPTS["code"]
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    limit = len(prompt) + 5
    params.set_search_options(num_beams=3, num_return_sequences=3, max_length=limit)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [generator.get_sequence(i)[len(prompt) :].tolist() for i in range(3)]
    assert found == beams_of(folder, prompt, 3, 5)


@pytest.mark.parametrize("name", ["gqa", "odd_36_32"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_batch_of_unequal_prompts(graph: str, name: str) -> None:
    """encode_batch pads on the right, and a step's mask then has a gap: 1 1 0 0 1."""
    made, steps, lengths = case(name), 5, (4, 11)
    folder = exported(made.folder, f"onnx:f32{graph}")
    prompts = [made.ids[row, :length].tolist() for row, length in enumerate(lengths)]
    padded = [prompt + [511] * (max(lengths) - len(prompt)) for prompt in prompts]
    found = generate(folder, padded, steps)
    for row, prompt in enumerate(prompts):
        want, _ = oracle_logits(made.folder, np.array([[*prompt, *found.tokens[row]]]))
        assert_same(want[0, len(prompt) - 1 : -1], found.logits[row], TIGHT)
