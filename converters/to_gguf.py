"""A Writer: GGUF of architecture `deepseek`, which computes exactly what EMO computes.

llama.cpp has no `emo`; its first DeepSeek-MoE graph has the same norms, the same softmax gate
without renormalisation, and a shared expert of weight 1. Rope there pairs neighbouring rows, so the
rows of q and k are permuted. Source: llama.cpp `src/models/deepseek.cpp`, gguf-py `gguf_writer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np

from emo_export.artifact import FILE_TYPES
from emo_export.config import EmoConfig
from emo_export.converters.ggml_formats import GGML_FORMATS, GgmlFormat
from emo_export.converters.gguf_tokenizer import GgufTokenizer
from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.disk import writing
from emo_export.errors import EmoExportError
from emo_export.interfaces import Format, Ids, Packed, TensorDecl
from emo_export.names import Role, Slot, shape_of
from emo_export.rope import rope_type
from emo_export.scheme import QuantScheme

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT

_NAMES = {
    Role.ATTN_NORM: "attn_norm",
    Role.Q: "attn_q",
    Role.K: "attn_k",
    Role.V: "attn_v",
    Role.O: "attn_output",
    Role.FFN_NORM: "ffn_norm",
    Role.ROUTER: "ffn_gate_inp",
    Role.DENSE_GATE: "ffn_gate",
    Role.DENSE_UP: "ffn_up",
    Role.DENSE_DOWN: "ffn_down",
}
_EXPERT_NAMES = {Role.GATE: "ffn_gate", Role.UP: "ffn_up", Role.DOWN: "ffn_down"}


def check_expressible(config: EmoConfig) -> None:
    """Refuse by name what llama.cpp's `deepseek` graph cannot compute (emo.md, GGUF table)."""
    dense = [layer.is_dense for layer in config.layers]
    lead = dense.index(False) if False in dense else len(dense)
    sparse = [layer for layer in config.layers if not layer.is_dense]
    counts = {layer.num_experts for layer in sparse}
    shared = {layer.num_shared_experts for layer in sparse}
    width = config.num_attention_heads * config.head_dim
    problems = {
        "always_active_experts": any(layer.always_active_experts for layer in sparse),
        "dense layers that do not lead": any(dense[lead:]),
        "a model without expert layers": not sparse,
        f"expert counts that differ between layers {sorted(counts)}": len(counts) > 1,
        f"shared expert counts that differ between layers {sorted(shared)}": len(shared) > 1,
        "num_shared_experts above 1": max(shared, default=0) > 1,
        "no routed expert per token": any(s.num_routed_per_tok == 0 for s in sparse),
        "norm_topk_prob": config.norm_topk_prob,
        "attention_bias": config.attention_bias,
        "dense_mlp_bias": config.dense_mlp_bias and any(dense),
        f"heads of total width {width} beside hidden_size {config.hidden_size}": width
        != config.hidden_size,
        "rope_scaling llama3": rope_type(config) == "llama3",
    }
    found = [name for name, present in problems.items() if present]
    if found:
        raise EmoExportError(
            f"gguf: llama.cpp's deepseek graph can't express {'; '.join(found)}; "
            "export to ONNX instead (--to onnx:int4)"
        )


def rope_permutation(heads: int, head_dim: int) -> Ids:
    """Source row of each row of q or k: halves of a head become neighbouring pairs."""
    rows = np.arange(heads * head_dim, dtype=np.int64)
    return rows.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


class GgufWriter:
    """Writes one GGUF file in place; holds no tensor."""

    def __init__(
        self,
        path: Path,
        config: EmoConfig,
        scheme: QuantScheme,
        *,
        tokenizer: GgufTokenizer | None,
        model_name: str,
        context: int,
    ) -> None:
        self.target = f"gguf:{scheme.type_name}"
        self.path = path
        self._config, self._scheme = config, scheme
        self._tokenizer, self._model_name, self._context = tokenizer, model_name, context
        self._declared = list(self._tensors())
        self._file: PlacedFile | None = None

    def declarations(self) -> Sequence[TensorDecl]:
        """Every tensor, in file order."""
        return [
            TensorDecl(name, shape, kind.name, kind.nbytes(int(np.prod(shape[:-1])), shape[-1]))
            for name, shape, kind in self._declared
        ]

    def format_of(self, slot: Slot) -> Format:
        """The ggml type of a slot."""
        return self._scheme.format_of(slot)

    def open(self) -> None:
        """Write header, keys and tensor infos; reserve the rest of the file."""
        writer = gguf.GGUFWriter(None, "deepseek")
        self._add_keys(writer)
        for (name, shape, kind), decl in zip(self._declared, self.declarations(), strict=True):
            row = kind.nbytes(1, shape[-1])
            stored = (*shape[:-1], row) if kind.block > 1 else shape
            dtype = np.dtype(np.uint8 if kind.block > 1 else np.float32)
            writer.add_tensor_info(name, stored, dtype, decl.nbytes, raw_dtype=kind.kind)
        with writing(self.path):
            writer.write_header_to_file(self.path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
        regions, offset = {}, _align(self.path.stat().st_size)
        for decl in self.declarations():
            rows = int(np.prod(decl.shape[:-1]))
            regions[decl.name] = Region(offset, rows, decl.nbytes // rows)
            offset = _align(offset + decl.nbytes)
        self._file = PlacedFile(self.path, offset, regions)
        self._write_missing_shared(regions)

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put rows in place: q and k permuted, experts in their stack, the router cut to routed."""
        if self._file is None:
            raise EmoExportError("the GGUF writer is not open")
        rows, config = packed["rows"], self._config
        if slot.role in _EXPERT_NAMES:
            name, start = self._expert_place(slot, rows.shape[0])
            self._file.write(name, start, rows)
        elif slot.role == Role.EMBED:
            self._file.write("token_embd.weight", start, rows)
            if config.tie_word_embeddings:
                self._file.write("output.weight", start, rows)
        elif slot.role in (Role.HEAD, Role.FINAL_NORM):
            name = "output" if slot.role == Role.HEAD else "output_norm"
            self._file.write(f"{name}.weight", start, rows)
        else:
            if slot.role in (Role.Q, Role.K):
                rows = rows[rope_permutation(rows.shape[0] // config.head_dim, config.head_dim)]
            elif slot.role == Role.ROUTER:
                rows = rows[list(config.layers[slot.layer].routed)]
            self._file.write(f"blk.{slot.layer}.{_NAMES[slot.role]}.weight", start, rows)

    def close(self) -> Sequence[Path]:
        """Check that every row was written; flush."""
        if self._file is None:
            raise EmoExportError("the GGUF writer is not open")
        self._file.close()
        return [self.path]

    def abort(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.abort()

    def _expert_place(self, slot: Slot, rows: int) -> tuple[str, int]:
        layer = self._config.layers[slot.layer]
        stem = f"blk.{slot.layer}.{_EXPERT_NAMES[slot.role]}"
        if slot.expert in layer.forced:
            return f"{stem}_shexp.weight", 0
        return f"{stem}_exps.weight", layer.routed.index(slot.expert) * rows

    def _write_missing_shared(self, regions: dict[str, Region]) -> None:
        """Fill the all-zero shared expert of a model that has none; the graph asks for one."""
        for name, region in regions.items():
            layer = int(name.split(".")[1]) if "_shexp" in name else -1
            if layer >= 0 and not self._config.layers[layer].forced and self._file is not None:
                self._file.write(name, 0, np.zeros((region.rows, region.row_bytes), np.uint8))

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...], GgmlFormat]]:
        config = self._config

        def entry(name: str, slot: Slot) -> tuple[str, tuple[int, ...], GgmlFormat]:
            kind = GGML_FORMATS[self._scheme.format_of(slot).name]
            return f"{name}.weight", shape_of(slot, config), kind

        yield entry("token_embd", Slot(Role.EMBED))
        yield entry("output_norm", Slot(Role.FINAL_NORM))
        head = Slot(Role.EMBED if config.tie_word_embeddings else Role.HEAD)
        yield entry("output", head)
        for index, layer in enumerate(config.layers):
            roles = [Role.ATTN_NORM, Role.Q, Role.K, Role.V, Role.O, Role.FFN_NORM]
            if layer.is_dense:
                roles += [Role.DENSE_GATE, Role.DENSE_UP, Role.DENSE_DOWN]
            for role in roles:
                yield entry(f"blk.{index}.{_NAMES[role]}", Slot(role, index))
            if not layer.is_dense:
                yield from self._expert_tensors(index)

    def _expert_tensors(self, index: int) -> Iterator[tuple[str, tuple[int, ...], GgmlFormat]]:
        config, layer = self._config, self._config.layers[index]
        routed = len(layer.routed)
        router = (f"blk.{index}.ffn_gate_inp.weight", (routed, config.hidden_size))
        yield (*router, GGML_FORMATS["f32"])
        for role, stem in _EXPERT_NAMES.items():
            slot = Slot(role, index, layer.routed[0])
            forced = Slot(role, index, layer.forced[0]) if layer.forced else slot
            shape = shape_of(slot, config)
            stack = GGML_FORMATS[self._scheme.format_of(slot).name]
            single = GGML_FORMATS[self._scheme.format_of(forced).name]
            yield f"blk.{index}.{stem}_exps.weight", (routed, *shape), stack
            yield f"blk.{index}.{stem}_shexp.weight", shape, single

    def _add_keys(self, writer: gguf.GGUFWriter) -> None:
        config = self._config
        first = next(layer for layer in config.layers if not layer.is_dense)
        writer.add_name(self._model_name)
        writer.add_file_type(FILE_TYPES[self._scheme.type_name])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(self._context)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.dense_intermediate_size or config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_dim)
        if rope_type(config) == "linear" and config.rope_scaling:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(config.rope_scaling["factor"]))
        writer.add_expert_count(len(first.routed))
        writer.add_expert_used_count(first.num_routed_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
        writer.add_leading_dense_block_count([s.is_dense for s in config.layers].index(False))
        writer.add_vocab_size(config.vocab_size)
        if self._tokenizer is None:
            writer.add_tokenizer_model("none")
        else:
            self._tokenizer.add_to(writer)


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
