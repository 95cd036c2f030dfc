"""Every type of ggml: files with importance in llama.cpp, and what falls back to which."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.twin import write_float_twin
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.files.gguf_types import FILE_TYPES
from emo_export.files.manifest import Manifest
from emo_export.line import Line, Output
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, Slot, shape_of, slots
from emo_export.model.recipes import GGUF_RECIPES, NEXT_BETTER
from emo_export.model.scheme import part_of
from emo_export.parity.judge import EXACT, SHIPPED, tolerances
from emo_export.pipeline import stream
from emo_export.reference.calibrate import Calibration
from emo_export.reference.passes import logits
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.spec import Spec
from tests.kit.command import Emo
from tests.kit.exporting import (
    TIGHT,
    Array,
    assert_same,
    case,
    dequantised_source,
    kl,
    open_product,
    prefill,
    steps,
)
from tests.kit.ggml_types import GRIDS, each
from tests.kit.synth import CONFIGS, make_checkpoint, make_config
from tests.kit.workspace import made_once

IDS = np.random.default_rng(3).integers(0, 256, (2, 12))
TEXT = [np.random.default_rng(4).integers(0, 256, 100) for _ in range(2)]
BLOCKS = {"f32": 1, "f16": 1, "bf16": 1, "q8_0": 32, "q5_1": 32, "q5_0": 32, "q4_1": 32}
BLOCKS |= {"q4_0": 32, "iq4_nl": 32, "mxfp4": 32}  # of all others 256


@functools.cache
def all_types(grids: bool) -> dict[str, tuple[Path, Array]]:
    """One pass into a file of every type; also what the reference computes with each."""
    names = [name for name in GGUF_RECIPES if grids or name not in GRIDS]
    folder = made_once(f"all-types-{grids}", functools.partial(make_all_types, names=names))
    with np.load(folder / "logits.npz") as stored:
        return {name: (folder / f"{name}.gguf", stored[name]) for name in names}


def make_all_types(folder: Path, names: list[str]) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_experts": 4, "vocab_size": 260}
    make_checkpoint(folder, num_hidden_layers=1, tokenizer=False, **sizes)
    product = open_product(folder)
    config = product.config
    calibration = Calibration(config, TEXT, "random ids")
    schemes = {name: gguf_scheme(name, config) for name in names}
    writers = {
        name: GgufWriter(
            folder / f"{name}.gguf",
            config,
            scheme,
            tokenizer=None,
            model_name="x",
            context=64,
            importance=calibration.matrix,
        )
        for name, scheme in schemes.items()
    }
    for writer in writers.values():
        writer.open()
    outputs = [Output(writer, calibration) for writer in writers.values()]
    stream([Line(product, outputs, [calibration])])
    for writer in writers.values():
        writer.close()
    computed = {}
    for name, scheme in schemes.items():
        source = dequantised_source(product, scheme, calibration.matrix)
        computed[name] = np.stack(logits(config, source, list(IDS)))
    np.savez(folder / "logits.npz", **computed)


@pytest.mark.parametrize("name", each(GGUF_RECIPES))
def test_llama_cpp_computes_the_dequantised_reference(name: str, tmp_path: Path) -> None:
    path, want = all_types(name in GRIDS)[name]
    write_float_twin(path, tmp_path / "twin.gguf")
    model = LlamaCpp(tmp_path / "twin.gguf", threads=1, parity=True)
    for found in (prefill(model, IDS), steps(model, IDS)):
        assert_same(want, found, TIGHT)
    model.close()
    limits = tolerances(Spec.parse(f"gguf:{name}"))
    assert EXACT in limits or name == "f32"
    model = LlamaCpp(path, threads=1, parity=True)
    assert kl(want, prefill(model, IDS)).mean() <= limits[SHIPPED]["kl_mean"]
    model.close()


@pytest.mark.parametrize("name", each(GGUF_RECIPES))
def test_the_file_has_the_types_of_the_recipe(name: str) -> None:
    reader = GGUFReader(all_types(name in GRIDS)[name][0])
    types = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    recipe = GGUF_RECIPES[name]
    assert reader.fields["general.file_type"].contents() == FILE_TYPES[name]
    for tensor, part in {
        "token_embd": "embed",
        "output": "head",
        "output_norm": "vector",
        "blk.0.attn_q": "attention",
        "blk.0.attn_output": "attention",
        "blk.0.ffn_gate_inp": "router",
        "blk.0.ffn_gate_exps": "expert",
        "blk.0.ffn_up_exps": "expert",
        "blk.0.ffn_down_exps": "expert_down",
        "blk.0.ffn_down_shexp": "shared_expert",
    }.items():
        assert types[f"{tensor}.weight"] == recipe[part], tensor  # type: ignore[index]


@pytest.mark.parametrize("grids", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_better_types_are_closer_to_the_original(grids: bool) -> None:
    types = all_types(grids)
    original = types["f32"][1]
    lost = {name: kl(original, logits).mean() for name, (_, logits) in types.items()}
    assert lost["f32"] <= 1e-9
    pairs = [
        ("f16", "q8_0"),
        ("q8_0", "q6_k"),
        ("q6_k", "q5_k_m"),
        ("q5_k_m", "q4_k_m"),
        ("q4_k_m", "q3_k_m"),
        ("q3_k_m", "q2_k"),
    ]
    if grids:
        pairs += [("iq4_xs", "iq3_s"), ("iq3_s", "iq2_s"), ("iq2_s", "iq2_xxs")]
    for better, worse in pairs:
        assert lost[better] < lost[worse], (better, worse)


def expected_type(wanted: str, cols: int) -> str:
    return next(t for t in (wanted, *NEXT_BETTER[wanted]) if cols % BLOCKS.get(t, 256) == 0)


@pytest.mark.parametrize("name", ["odd_48_20", "odd_40_24", "odd_36_32", "mha"])
@pytest.mark.parametrize("type_name", sorted(set(GGUF_RECIPES) - {"f32", "f16", "bf16"}))
def test_odd_widths_take_the_next_better_type(name: str, type_name: str) -> None:
    config = EmoConfig.from_dict(make_config(**CONFIGS[name]))
    scheme = gguf_scheme(type_name, config)
    fallbacks = {}
    for slot in slots(config):
        if slot.role in VECTORS or slot.role == Role.ROUTER:
            assert scheme.format_of(slot).name == "f32"
            continue
        wanted = GGUF_RECIPES[type_name][part_of(slot, config)]
        found = expected_type(wanted, shape_of(slot, config)[1])
        assert scheme.format_of(slot).name == found, slot
        if found != wanted:
            fallbacks[slot.name] = (wanted, found)
    assert dict(scheme.fallbacks) == fallbacks


@pytest.mark.parametrize("type_name", each(["q4_k_m", "iq2_xs"]))
def test_fallbacks_are_named_everywhere(type_name: str, tmp_path: Path, emo: Emo) -> None:
    """Also where every matrix falls back: nothing is left that needs an importance matrix."""
    out = tmp_path / "out"
    folder = case("odd_36_32").folder  # rows of 36, and of 32 for down
    done = emo("export", folder, "-o", out, "--to", f"gguf:{type_name}", "--json")
    assert done.code == 0
    expert = "q4_k" if type_name == "q4_k_m" else "iq2_xs"
    small = expected_type(expert, 32)
    down, gate = (Slot(role, 1, 2).name for role in (Role.DOWN, Role.GATE))
    entry = Manifest.load(out).targets[f"gguf:{type_name}"].as_dict()
    assert entry["recipe"]["expert"] == expert
    assert entry["fallbacks"][gate] == (expert, "f16")
    if type_name == "iq2_xs":
        assert entry["fallbacks"][down] == (expert, small)
    told = [line for line in done.err.splitlines() if "do not fit" in line]
    pairs = {tuple(change) for change in entry["fallbacks"].values()}
    assert len(told) == len(pairs)
    for wanted, used in pairs:
        count = sum(change == (wanted, used) for change in entry["fallbacks"].values())
        (line,) = [t for t in told if f"do not fit {wanted} and are written as {used}" in t]
        assert f"{count} tensors" in line
    card = (out / "README.md").read_text("utf-8")
    assert f"do not fit {expert}" in card or "more tensors, listed in manifest.json" in card
