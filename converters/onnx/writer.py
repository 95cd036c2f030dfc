"""A Writer: a folder with a complete ONNX decoder and its external data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from emo_export.base.disk import writing
from emo_export.converters.onnx.data import LOCATION, TRUNK
from emo_export.converters.onnx.decoder import KEPT, build_decoder, decoder_inputs, decoder_outputs
from emo_export.converters.onnx.experts.routing import router_rows
from emo_export.converters.onnx.genai import GENAI, genai_config
from emo_export.converters.onnx.genai_tokenizer import why_no_genai
from emo_export.converters.onnx.graph import Graph
from emo_export.converters.onnx.kinds import kind_of
from emo_export.converters.onnx.layout import Layout
from emo_export.converters.onnx.sides import (
    tokenizer_settings,
    write_config,
    write_generation,
    write_json,
    write_tokenizer,
)
from emo_export.converters.placed_file import PlacedFile
from emo_export.errors import EmoExportError
from emo_export.files.onnx_names import ANGLES
from emo_export.interfaces import F32, Format, Packed, TensorDecl
from emo_export.model.chat_templates import chat_templates
from emo_export.model.names import VECTORS, Role, Slot
from emo_export.model.product import Product
from emo_export.model.rope import cos_sin
from emo_export.model.scheme import QuantScheme
from emo_export.model.stop_tokens import stop_tokens


class OnnxWriter:
    """Writes model.onnx, model.onnx.data and the files beside them; holds one expert's gate.

    `no_genai` says why there will be no genai_config.json; it is empty when there will be one.
    """

    def __init__(
        self,
        folder: Path,
        product: Product,
        scheme: QuantScheme,
        *,
        context: int,
        accuracy_level: int,
        last_only: bool = False,
        plain_attention: bool = False,
        split: bool = False,
    ) -> None:
        """`split`: what is the same whichever routed experts are kept is in a file of its own."""
        self.target = str(scheme.spec)
        self.folder = folder
        checkpoint, config = product.path, product.config
        self._product, self._config, self._scheme = product, config, scheme
        self._context, self._level, self._last_only = context, accuracy_level, last_only
        self._stops = stop_tokens(checkpoint, config)
        # A broken file is refused before the weights are written.
        tokenizer_settings(checkpoint), chat_templates(checkpoint)
        self.no_genai = why_no_genai(checkpoint, self._stops)
        self.kind = kind_of(scheme, config, plain_attention=plain_attention)
        self._layout = Layout(self.kind, config, scheme, context, split)
        self.trunk = self._layout.data.trunk
        self._files: dict[str, PlacedFile] = {}
        self._gate: tuple[Slot, Packed] | None = None

    def declarations(self) -> Sequence[TensorDecl]:
        """Every initializer of the external data."""
        return self._layout.data.declarations

    def format_of(self, slot: Slot) -> Format:
        """The block format of a slot."""
        return self._scheme.format_of(slot)

    def open(self) -> None:
        """Reserve the external data; write what needs no weight."""
        self.folder.mkdir(exist_ok=True)
        data = self._layout.data
        for location, regions in data.files.items():
            file = PlacedFile(self.folder / location, data.size(location), regions)
            self._files[location] = file
        for name, table in zip(ANGLES, cos_sin(self._config, self._context), strict=True):
            self._put(name, 0, table)

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put rows in place; a routed gate waits for the up that it is stored with."""
        if slot in self._layout.stacks:
            self._stack(slot, packed)
            return
        place = self._layout.places[slot]
        if slot.role in VECTORS:
            self._put(place.stem, place.row, packed["weight"].reshape(-1, 1))
            return
        if slot.role == Role.ROUTER:
            kept = list(router_rows(self._config.layers[slot.layer]))
            packed = {name: rows[kept] for name, rows in packed.items()}
        for name, rows in packed.items():
            self._put(f"{place.stem}.{name}", place.row + start, rows)

    def close(self) -> Sequence[Path]:
        """Check that every row was written, write the graph, check it with onnx's checker."""
        if not self._files:
            raise EmoExportError("the ONNX writer is not open")
        for file in self._files.values():
            file.close()
        model_path = self._write_graph()
        # onnx knows the shapes of its own operators only.
        onnx.checker.check_model(str(model_path), full_check=not self.kind.microsoft)
        with writing(self.folder):
            self._write_side_files()
        return sorted(self.folder.iterdir())

    def outline(self) -> None:
        """The whole folder, a hole in the external data where weights belong."""
        self.open()
        self.abort()
        self._write_graph()
        with writing(self.folder):
            self._write_side_files()

    def placed(self) -> Sequence[PlacedFile]:
        """The file that holds its rows, once it is open."""
        return list(self._files.values())

    def abort(self) -> None:
        """Let go of the data files."""
        for file in self._files.values():
            file.abort()

    def _put(self, name: str, row: int, rows: F32) -> None:
        if not self._files:
            raise EmoExportError("the ONNX writer is not open")
        self._files[TRUNK if name in self.trunk else LOCATION].write(name, row, rows)

    def _stack(self, slot: Slot, packed: Packed) -> None:
        """Put one matrix of a routed expert (they come whole) among the layer's others."""
        stack, place = self._layout.stacks[slot]
        if slot.role == Role.GATE:
            self._gate = (slot, packed)
            return
        if slot.role == Role.DOWN:
            placed = stack.down(place, packed)
        else:
            held, self._gate = self._gate, None
            if held is None or (held[0].layer, held[0].expert) != (slot.layer, slot.expert):
                raise EmoExportError(f"{slot.name} came without its gate")
            placed = stack.gate_up(place, held[1], packed)
        for name, row, rows in placed:
            self._put(name, row, rows)

    def _write_graph(self) -> Path:
        path = self.folder / "model.onnx"
        with writing(path):
            path.write_bytes(self._model().SerializeToString(deterministic=True))
        return path

    def _model(self) -> onnx.ModelProto:
        graph, layout = Graph(self.kind, self._level), self._layout
        kept = np.array([1 if self._last_only else 0], dtype=np.int64)
        graph.defaults.append(numpy_helper.from_array(kept, KEPT))
        build_decoder(graph, self._config, layout.layers, layout.embed, layout.head)
        outputs = decoder_outputs(self._config, last_only=self._last_only)
        return graph.model(decoder_inputs(self._config), outputs, layout.data)

    def _write_side_files(self) -> None:
        needs = {
            "model_type": "emo",
            "graph": self.kind.name,
            "type": self._scheme.spec.type,
            "recipe": {part.value: name for part, name in self._scheme.used_recipe.items()},
            # The standard operators know no levels.
            "accuracy_level": self._level if self.kind.microsoft else None,
            "logits_to_keep": 1 if self._last_only else 0,
            "onnxruntime_min": self.kind.onnxruntime_min,
            # GroupQueryAttention may write the present into the past's buffer.
            "share_kv_buffer": self.kind.uses_gqa(self._config),
        }
        write_config(self.folder, self._product, self._context)
        write_json(self.folder / "emo_export.json", needs)
        write_generation(self.folder, self._product.path, self._stops)
        write_tokenizer(self.folder, self._product.path)
        if not self.no_genai:
            share = self.kind.uses_gqa(self._config)
            genai = genai_config(self._config, self._context, self._stops, share_kv_buffer=share)
            write_json(self.folder / GENAI, genai)
