"""What a user's run takes of a device's memory, estimated from the headers of its files.

Weights and KV cache are counted. The rest is a model of what the engines hold, fitted to
`validate --ram` on models of eight shapes (xllamacpp 2026.10, ONNX Runtime 1.31, x86-64;
`python -m tests.bench.plan` compares). Letters: T tokens of the prompt, D hidden, F expert width, K
experts of a token, E experts of a layer, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emo_export.files.gguf_header import GgufArray, read_gguf
from emo_export.files.memory_need import Need
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_names import ANGLES, SCALES, WEIGHT, element_of, part_of
from emo_export.files.onnx_needs import read_requirements
from emo_export.model.config import EmoConfig
from emo_export.model.recipes import Part

PROMPT = 512
"""Tokens of the longest prompt that the figures are for; llama.cpp reads as many at a time."""

LLAMA_ENGINE, LLAMA_LIBRARIES = 20_800_000, 9_000_000
ORT_ENGINE, ORT_LIBRARIES = 32_900_000, 13_000_000
"""Python with an engine before a model is opened: anonymous, and its share of libraries.

The share was 6 to 13 MB and 9 to 17 MB, the more the fewer other processes had mapped them too.
"""

LLAMA_FIXED, ORT_FIXED = 5_000_000, 6_000_000
VOCABULARY_BYTES, MERGE_BYTES = 170, 220  # of llama.cpp's tables, for each token and each merge
BRANCH_BYTES = 40_000  # of a branch in ONNX Runtime
WINDOW = 64 << 10  # bytes of a file that Linux maps when one of its pages is touched


@dataclass(frozen=True)
class Running:
    """Bytes, all in memory at once.

    `weights`: in a copy of the engine's, or in pages of the file. `cache`: the KV cache at the
    context. `engine` and `libraries`: Python and the engine before a model is opened, what is
    anonymous and what is in files. `work`: what the engine computes in.
    """

    weights: int
    cache: int
    engine: int
    libraries: int
    work: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.engine + self.libraries + self.work

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


def gguf_running(path: Path, need: Need) -> Running:
    """Of a .gguf file, which may be an outline without weights."""
    work = _llama_work(path, min(PROMPT, need.context))
    return Running(need.weights, need.cache, LLAMA_ENGINE, LLAMA_LIBRARIES, work)


def _llama_work(path: Path, tokens: int) -> int:
    """Of llama.cpp, which maps or repacks every weight once.

    A token holds gate, up and their product of each of its experts, all inputs of `down` once more
    in 8 bits, its places in every expert's list, and a few hidden vectors.
    """
    keys = read_gguf(path).keys

    def number(name: str) -> int:
        return int(keys.get(f"{keys['general.architecture']}.{name}", 0))

    used, experts = number("expert_used_count"), number("expert_count")
    wide = used * number("expert_feed_forward_length")
    each = 13 * max(wide, number("feed_forward_length")) + 8 * used * experts
    each += 12 * number("embedding_length")
    vocabulary = _length(keys, "tokens") * VOCABULARY_BYTES + _length(keys, "merges") * MERGE_BYTES
    return LLAMA_FIXED + vocabulary + tokens * each


def _length(keys: Mapping[str, Any], name: str) -> int:
    found = keys.get(f"tokenizer.ggml.{name}", ())
    return found.length if isinstance(found, GgufArray) else len(found)


def onnx_running(path: Path, need: Need, config: EmoConfig) -> Running:
    """Of an ONNX folder: packed copies, the pages of the file that it goes on reading, and work.

    A token holds the activations of its experts in float and in 8 bits, their outputs, and queries,
    keys and values. With branches it holds inputs and outputs of all its experts, and of one at a
    time the rest; the standard graph takes a token at a time through the experts.
    """
    tokens = min(PROMPT, need.context)
    tensors, graph = read_onnx(path / "model.onnx").initializers, read_requirements(path).graph
    hidden, used = config.hidden_size, config.num_experts_per_tok
    wide = used * config.intermediate_size
    fixed, each = ORT_FIXED, 5 * wide + 4 * used * hidden + 12 * hidden
    if graph == "if":
        fixed += BRANCH_BYTES * sum(layer.num_experts for layer in config.layers)
        each = 2 * wide + 8 * used * hidden + 22 * hidden
    if graph == "standard":
        fixed, each = 0, 12 * hidden + 6 * config.num_attention_heads * tokens
    tables = sum(t.nbytes for t in tensors if t.name in ANGLES)
    embedding = [t for t in tensors if part_of(t.name) == Part.EMBED]
    copied = sum(t.nbytes for t in tensors) - tables - sum(t.nbytes for t in embedding)
    if need.stays_mapped:  # and every matrix but the routed experts' is copied beside
        routed = (Part.EXPERT, Part.EXPERT_DOWN)
        weights = need.weights + copied
        weights -= sum(t.nbytes for t in tensors if part_of(t.name) in routed)
        if graph == "standard":  # whose head was found in memory three times, not twice
            weights += sum(t.nbytes for t in tensors if part_of(t.name) == Part.HEAD)
    else:
        weights = copied + tables
        weights += sum(t.nbytes for t in tensors if element_of(t.name) == SCALES)
        weights += sum(
            _touched(t.nbytes, tokens) for t in embedding if element_of(t.name) == WEIGHT
        )
    return Running(weights, need.cache, ORT_ENGINE, ORT_LIBRARIES, fixed + tokens * each)


def _touched(nbytes: int, rows: int) -> int:
    """Bytes of a table in a mapped file that are in memory after so many of its rows were read."""
    return round(nbytes * -math.expm1(-rows * WINDOW / nbytes))
