"""A Writer: a folder with a complete ONNX decoder (the `qmoe` graph) and its external data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from emo_export.config import EmoConfig
from emo_export.converters.nbits_formats import NBITS_FORMATS, IntBlocks
from emo_export.converters.onnx_data import LOCATION, ExternalData
from emo_export.converters.onnx_decoder import (
    LayerParts,
    build_decoder,
    decoder_inputs,
    decoder_outputs,
    uses_gqa,
)
from emo_export.converters.onnx_experts import ExpertBlock, ExpertStack, router_rows
from emo_export.converters.onnx_graph import Graph, Linear
from emo_export.converters.placed_file import PlacedFile
from emo_export.disk import writing
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed, TensorDecl
from emo_export.json_file import read_json
from emo_export.names import VECTORS, Role, Slot, shape_of
from emo_export.recipes import ONNX_RECIPES, Part
from emo_export.rope import cos_sin, rope_type
from emo_export.scheme import QuantScheme, part_of, resolve
from emo_export.stop_tokens import GENERATION, stop_tokens

ONNXRUNTIME_MIN = "1.31"
"""QMoE with router_weights and accuracy_level has its CPU kernel from this version on."""

COPIED = ("tokenizer.json", "tokenizer_config.json")


def onnx_scheme(type_name: str, config: EmoConfig) -> QuantScheme:
    """The formats of an ONNX recipe for this model. Raises EmoExportError for an unknown type."""
    if type_name not in ONNX_RECIPES:
        known = ", ".join(ONNX_RECIPES)
        raise EmoExportError(f"onnx:{type_name} is not a known type; choose one of {known}")
    rope_type(config)
    if any(not s.is_dense and s.num_routed_per_tok == 0 for s in config.layers):
        raise EmoExportError("onnx: a layer whose tokens use no routed expert is not supported")
    # QMoE has one block size for both of its matrices, and experts of all layers share a format.
    uniform = frozenset({Part.EXPERT, Part.EXPERT_DOWN})
    return resolve(type_name, ONNX_RECIPES[type_name], NBITS_FORMATS, config, uniform)


@dataclass(frozen=True)
class Place:
    """Where the rows of a slot go: an initializer's stem and its first row there."""

    stem: str
    row: int = 0


class OnnxWriter:
    """Writes model.onnx, model.onnx.data and the files beside them; holds one expert's gate."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        config: EmoConfig,
        scheme: QuantScheme,
        *,
        context: int,
        accuracy_level: int,
    ) -> None:
        self.target = f"onnx:{scheme.type_name}"
        self.folder = folder
        self._checkpoint, self._config, self._scheme = checkpoint, config, scheme
        self._context, self._level = context, accuracy_level
        self._stops = list(stop_tokens(checkpoint, config))
        self._data = ExternalData()
        self._places: dict[Slot, Place] = {}
        self._embed, self._head = self._declare_ends()
        self._layers = [self._declare_layer(i) for i in range(config.num_hidden_layers)]
        self._declare_tables()
        self._file: PlacedFile | None = None
        self._gate: tuple[Slot, Packed] | None = None

    def declarations(self) -> Sequence[TensorDecl]:
        """Every initializer of the external data."""
        return self._data.declarations

    def format_of(self, slot: Slot) -> Format:
        """The block format of a slot."""
        return self._scheme.format_of(slot)

    def open(self) -> None:
        """Reserve the external data; write what needs no weight."""
        self.folder.mkdir()
        self._file = PlacedFile(self.folder / LOCATION, self._data.size, self._data.regions)
        for name, table in zip(("cos", "sin"), cos_sin(self._config, self._context), strict=True):
            self._file.write(name, 0, table)

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put rows in place; gate rows wait for the up rows that they are interleaved with."""
        if slot.role in VECTORS:
            place = self._places[slot]
            self._put(place.stem, place.row, packed["weight"].reshape(-1, 1))
            return
        if slot.role in (Role.GATE, Role.UP) and self._is_routed(slot):
            if slot.role == Role.GATE:
                self._gate = (slot, packed)
                return
            packed = self._interleaved(slot, packed)
        elif slot.role == Role.ROUTER:
            kept = list(router_rows(self._config.layers[slot.layer]))
            packed = {name: rows[kept] for name, rows in packed.items()}
        place = self._places[slot]
        for name, rows in packed.items():
            self._put(f"{place.stem}.{name}", place.row + start, rows)

    def close(self) -> Sequence[Path]:
        """Check that every row was written, write the graph, check it with onnx's checker."""
        if self._file is None:
            raise EmoExportError("the ONNX writer is not open")
        self._file.close()
        model_path = self.folder / "model.onnx"
        with writing(model_path):
            model_path.write_bytes(self._model().SerializeToString(deterministic=True))
        onnx.checker.check_model(str(model_path))
        with writing(self.folder):
            self._write_side_files()
        return sorted(self.folder.iterdir())

    def abort(self) -> None:
        """Let go of the data file."""
        if self._file is not None:
            self._file.abort()

    def _put(self, name: str, row: int, rows: F32) -> None:
        if self._file is None:
            raise EmoExportError("the ONNX writer is not open")
        self._file.write(name, row, rows)

    def _is_routed(self, slot: Slot) -> bool:
        return part_of(slot, self._config) in (Part.EXPERT, Part.EXPERT_DOWN)

    def _interleaved(self, slot: Slot, up: Packed) -> Packed:
        """Rows gate 0, up 0, gate 1, up 1, … as swiglu_fusion=1 wants them."""
        held, self._gate = self._gate, None
        if held is None or (held[0].layer, held[0].expert) != (slot.layer, slot.expert):
            raise EmoExportError(f"{slot.name} came without its gate")
        return {
            name: np.stack([held[1][name], rows], axis=1).reshape(-1, *rows.shape[1:])
            for name, rows in up.items()
        }

    def _linear(self, name: str, stacked: Sequence[Slot], biases: Sequence[Slot] = ()) -> Linear:
        """Declare a matrix made of the rows of several slots (of one format), and its bias."""
        rows = 0
        for slot in stacked:
            self._places[slot] = Place(name, rows)
            rows += shape_of(slot, self._config)[0]
        row = 0
        for slot in biases:
            self._places[slot] = Place(f"{name}.bias", row)
            row += shape_of(slot, self._config)[0]
        cols = shape_of(stacked[0], self._config)[-1]
        linear = Linear(name, rows, cols, self._scheme.format_of(stacked[0]), bool(biases))
        linear.declare(self._data)
        return linear

    def _vector(self, name: str, slot: Slot) -> None:
        width = self._config.hidden_size
        self._data.declare(f"{name}.weight", "f32", (width,), width)
        self._places[slot] = Place(f"{name}.weight")

    def _declare_ends(self) -> tuple[Linear, Linear]:
        """Embedding, head and final norm; a tied head is the embedding under a second name."""
        config, slot = self._config, Slot(Role.EMBED)
        embed = Linear("embed", config.vocab_size, config.hidden_size, self._scheme.format_of(slot))
        tied = config.tie_word_embeddings
        head = self._linear("head", [slot if tied else Slot(Role.HEAD)])
        if not tied:
            self._places[slot] = Place("embed")
        # The gather wants two dimensions where MatMulNBits wants three, over the same bytes.
        shapes = {"weight": ("f32", (embed.rows, embed.cols))}
        if isinstance(embed.kind, IntBlocks):
            blocks = embed.cols // embed.kind.block
            shapes["weight"] = ("u8", (embed.rows, embed.cols * embed.kind.bits // 8))
            shapes["scales"] = ("f32", (embed.rows, blocks))
        for part, (element, shape) in shapes.items():
            if tied:
                self._data.alias(f"embed.{part}", element, shape, f"head.{part}")
            else:
                self._data.declare(f"embed.{part}", element, shape, embed.rows)
        self._vector("final_norm", Slot(Role.FINAL_NORM))
        return embed, head

    def _declare_layer(self, index: int) -> LayerParts:
        config, stem = self._config, f"layers.{index}"
        self._vector(f"{stem}.attn_norm", Slot(Role.ATTN_NORM, index))
        self._vector(f"{stem}.ffn_norm", Slot(Role.FFN_NORM, index))
        biased = config.attention_bias
        qkv_bias = (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS) if biased else ()
        qkv = self._linear(
            f"{stem}.qkv",
            [Slot(role, index) for role in (Role.Q, Role.K, Role.V)],
            [Slot(role, index) for role in qkv_bias],
        )
        out_bias = [Slot(Role.O_BIAS, index)] if biased else []
        out = self._linear(f"{stem}.attn_out", [Slot(Role.O, index)], out_bias)
        dense = config.layers[index].is_dense
        ffn = self._declare_dense(index) if dense else self._declare_experts(index)
        return LayerParts(qkv, out, ffn)

    def _declare_dense(self, index: int) -> tuple[Linear, Linear]:
        biased, stem = self._config.dense_mlp_bias, f"layers.{index}.dense"
        in_bias = (Role.DENSE_GATE_BIAS, Role.DENSE_UP_BIAS) if biased else ()
        gate_up = self._linear(
            f"{stem}.gate_up",
            [Slot(role, index) for role in (Role.DENSE_GATE, Role.DENSE_UP)],
            [Slot(role, index) for role in in_bias],
        )
        out_bias = [Slot(Role.DENSE_DOWN_BIAS, index)] if biased else []
        return gate_up, self._linear(f"{stem}.down", [Slot(Role.DENSE_DOWN, index)], out_bias)

    def _declare_experts(self, index: int) -> ExpertBlock:
        config, layer, stem = self._config, self._config.layers[index], f"layers.{index}"
        router = Linear(
            f"{stem}.router",
            len(router_rows(layer)),
            config.hidden_size,
            self._scheme.format_of(Slot(Role.ROUTER, index)),
        )
        router.declare(self._data)
        self._places[Slot(Role.ROUTER, index)] = Place(router.name)
        forced = tuple(
            (
                self._linear(
                    f"{stem}.forced.{e}.gate_up", [Slot(r, index, e) for r in (Role.GATE, Role.UP)]
                ),
                self._linear(f"{stem}.forced.{e}.down", [Slot(Role.DOWN, index, e)]),
            )
            for e in layer.forced
        )
        return ExpertBlock(layer, router, self._declare_stack(index), forced)

    def _declare_stack(self, index: int) -> ExpertStack:
        config, layer, name = self._config, self._config.layers[index], f"layers.{index}.experts"
        hidden, width = config.hidden_size, config.intermediate_size
        kind = self._scheme.format_of(Slot(Role.UP, index, layer.routed[0]))
        stack = ExpertStack(name, len(layer.routed), hidden, width, kind)
        stack.declare(self._data)
        for place, expert in enumerate(layer.routed):
            self._places[Slot(Role.UP, index, expert)] = Place(f"{name}.fc1", place * 2 * width)
            self._places[Slot(Role.DOWN, index, expert)] = Place(f"{name}.fc2", place * hidden)
        return stack

    def _declare_tables(self) -> None:
        for name in ("cos", "sin"):
            shape = (self._context, self._config.head_dim // 2)
            self._data.declare(name, "f32", shape, self._context)

    def _model(self) -> onnx.ModelProto:
        graph = Graph(self._level)
        build_decoder(graph, self._config, self._layers, self._embed, self._head)
        metadata = {"emo_export.graph": "qmoe", "emo_export.onnxruntime_min": ONNXRUNTIME_MIN}
        ends = decoder_inputs(self._config), decoder_outputs(self._config)
        return graph.model("emo", *ends, self._data, metadata)

    def _write_side_files(self) -> None:
        """config.json for the runtimes, the tokenizer, and what the graph needs to run."""
        raw = dict(read_json(self._checkpoint / "config.json"))
        raw.pop("auto_map", None)  # no remote code is shipped
        raw |= {
            "head_dim": self._config.head_dim,
            "num_key_value_heads": self._config.num_key_value_heads,
            "max_position_embeddings": self._context,
        }
        needs = {
            "graph": "qmoe",
            "type": self._scheme.type_name,
            "accuracy_level": self._level,
            "onnxruntime_min": ONNXRUNTIME_MIN,
            # GroupQueryAttention may write the present into the past's buffer.
            "share_kv_buffer": uses_gqa(self._config),
        }
        _write_json(self.folder / "config.json", raw)
        _write_json(self.folder / "emo_export.json", needs)
        given = self._checkpoint / GENERATION
        generation = read_json(given) if given.is_file() else {}
        if self._stops:
            one = len(self._stops) == 1
            generation["eos_token_id"] = self._stops[0] if one else self._stops
        _write_json(self.folder / GENERATION, generation)
        for name in COPIED:
            if (self._checkpoint / name).is_file():
                shutil.copyfile(self._checkpoint / name, self.folder / name)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
