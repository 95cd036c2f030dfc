"""What a GGUF tells of its model: a config.json from its keys, and from what its tensors show.

The graph of `deepseek` or `glm4moe` with these keys computes what the config says, whoever wrote
the file; a key or a stack that would make it compute something else is refused. A tied head is
written twice, and is two matrices here. Source: `keys.py`; llama.cpp's defaults for absent keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from emo_export.converters.gguf.graph import FORCE, Graph, graph_of
from emo_export.converters.gguf.layout import Layout
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufFile, GgufTensor, read_gguf
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.gguf_parts import part_paths, read_model
from emo_export.files.gguf_types import ARCHITECTURES
from emo_export.files.tensor_names import Form
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role

AT_ONCE = 1 << 22
"""Bytes that are looked at in one piece."""


def config_told(path: Path) -> Mapping[str, Any]:
    """config.json of the model in a file, as an EMO checkpoint would have it.

    Raises EmoExportError naming what can't be told from the file, or is not EMO's.
    """
    told = _Told(path)
    raw = told.config()
    told.check(EmoConfig.from_dict(raw, str(path)))
    return raw


class _Told:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: GgufFile = read_model(path)
        self.tensors: dict[str, tuple[Path, GgufTensor]] = {
            tensor.name: (part, tensor)
            for part in part_paths(path, self.file)
            for tensor in read_gguf(part).tensors
        }
        self.arch = str(self.file.keys.get("general.architecture"))
        if self.arch not in ARCHITECTURES:
            self.refuse(f"architecture {self.arch!r}; EMO is in {' or '.join(ARCHITECTURES)}")
        self.lead = self.integer("leading_dense_block_count", 0)
        self.experts, self.used = self.integer("expert_count"), self.integer("expert_used_count")
        self.shared = self.integer("expert_shared_count", 0)

    def refuse(self, what: str) -> NoReturn:
        raise EmoExportError(
            f"{self.path}: {what}; it can't be told what the model computes: prune the checkpoint, "
            "and export that"
        )

    def key(self, name: str, default: Any = None) -> Any:
        value = self.file.keys.get(f"{self.arch}.{name}", default)
        if value is None:
            self.refuse(f"has no key {self.arch}.{name}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.key(name, default)
        if type(value) is not int or not 0 <= value < 1 << 31:
            self.refuse(f"{self.arch}.{name} is {value!r}")
        return value

    def only(self, name: str, default: Any, wanted: Any) -> None:
        """Refuse a key with which the graph computes something else."""
        found = self.key(name, default)
        if found != wanted:
            self.refuse(f"{self.arch}.{name} is {found!r}, in EMO {wanted!r}")

    def config(self) -> dict[str, Any]:
        heads, size = self.integer("attention.head_count"), self.integer("attention.key_length")
        self.only("attention.value_length", size, size)
        self.only("rope.dimension_count", size, size)
        self.only("expert_weights_scale", 1.0, 1.0)
        softmax = gguf.ExpertGatingFuncType.SOFTMAX.value
        # Where glm4moe's key is absent, llama.cpp takes a sigmoid.
        self.only("expert_gating_func", 0 if self.arch == "glm4moe" else softmax, softmax)
        layers, forced = self.layers()
        raw: dict[str, Any] = {
            "model_type": "emo",
            "vocab_size": self.tensor(GGUF_NAMES.name(Role.EMBED))[1].shape[0],
            "hidden_size": self.integer("embedding_length"),
            "intermediate_size": self.integer("expert_feed_forward_length"),
            "num_hidden_layers": len(layers),
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("attention.head_count_kv", heads),
            "head_dim": size,
            "max_position_embeddings": self.integer("context_length"),
            "rms_norm_eps": self.key("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.key("rope.freq_base", 10000.0),
            "rope_scaling": self.scaling(),
            "tie_word_embeddings": False,
            "norm_topk_prob": self.arch == "glm4moe" and self.key("expert_weights_norm", False),
            "num_experts": max(count for count, _ in layers),
            "num_experts_per_tok": self.used + (0 if any(forced) else max(s for _, s in layers)),
            "num_shared_experts": max(shared for _, shared in layers),
            "eos_token_id": self.file.keys.get("tokenizer.ggml.eos_token_id"),
        }
        if len(set(layers)) > 1:
            raw["num_experts_per_layer"] = [count for count, _ in layers]
            raw["num_shared_experts_per_layer"] = [shared for _, shared in layers]
        if any(count == 0 for count, _ in layers):
            raw["dense_intermediate_size"] = self.integer("feed_forward_length")
        if any(forced):
            raw["always_active_experts_per_layer"] = forced
        return raw

    def scaling(self) -> dict[str, Any] | None:
        kind = self.key("rope.scaling.type", "none")
        if kind == "linear":
            return {"type": "linear", "factor": self.key("rope.scaling.factor")}
        if kind != "none":
            self.refuse(f"{self.arch}.rope.scaling.type is {kind!r}, in EMO 'linear'")
        return None

    def layers(self) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """(experts, shared ones) of each layer, and the experts that are forced by a bias."""
        counts, forced = [], []
        for layer in range(self.integer("block_count")):
            dense = layer < self.lead or not self.any(GGUF_NAMES.name(Role.ROUTER, layer))
            always: list[int] = []
            if not dense and self.arch == "glm4moe":
                always = np.flatnonzero(self.bias(layer) == np.float32(FORCE)).tolist()
            down = GGUF_NAMES.name(Role.DOWN, layer, form=Form.SHARED)
            shared = int(not dense and self.shared > 0 and self.any(down))
            counts.append((0 if dense else self.experts + shared, shared))
            forced.append(always)
        if not any(count for count, _ in counts):
            self.refuse("no layer has experts")
        return counts, forced

    def check(self, config: EmoConfig) -> None:
        """Hold the graph of the config against the file's keys, biases and widths."""
        graph: Graph = graph_of(config, self.arch)
        found = self.lead, self.experts, self.used, self.shared
        if found != (graph.lead, graph.experts, graph.used, graph.shared):
            self.refuse(
                f"has {found[0]} leading dense layers and experts {found[1:]} (all, used by a "
                f"token, shared), EMO's would be {graph.lead} and "
                f"{(graph.experts, graph.used, graph.shared)}"
            )
        layout = Layout(config, self.arch, gguf_scheme("f32", config, arch=self.arch))
        for name, wanted in layout.biases():
            if not np.array_equal(self.values(name), np.array(wanted, np.float32)):
                self.refuse(f"{name} holds other biases than those of equal counts of experts")

    def tensor(self, name: str) -> tuple[Path, GgufTensor]:
        """A tensor, and the file that it is in."""
        found = self.tensors.get(name)
        if found is None or not found[1].shape:
            self.refuse(f"has no tensor {name}")
        return found

    def bias(self, layer: int) -> Any:
        return self.values(GGUF_NAMES.name(Role.ROUTER, layer, form=Form.GLM4MOE))

    def values(self, name: str) -> Any:
        """A small float32 tensor."""
        file, tensor = self.tensor(name)
        if tensor.type != "F32":
            self.refuse(f"{name} is {tensor.type}, expected F32")
        return np.fromfile(file, "<f4", tensor.nbytes // 4, offset=tensor.offset)

    def any(self, name: str) -> bool:
        """Whether a tensor has a byte that is not zero."""
        file, tensor = self.tensor(name)
        end = tensor.offset + tensor.nbytes
        return any(
            np.fromfile(file, np.uint8, min(AT_ONCE, end - at), offset=at).any()
            for at in range(tensor.offset, end, AT_ONCE)
        )
