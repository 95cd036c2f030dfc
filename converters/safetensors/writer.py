"""A Writer: safetensors shards with their index, tensors in the order of a forward pass.

Source: https://github.com/huggingface/safetensors#format, and the index of transformers'
`save_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.base.disk import writing
from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.converters.safetensors.formats import STORED, Stored
from emo_export.errors import EmoExportError
from emo_export.interfaces import Format, Packed, TensorDecl
from emo_export.model.checkpoint import INDEX, SINGLE
from emo_export.model.names import VECTORS, Slot, shape_of, slots
from emo_export.model.product import Product


@dataclass(frozen=True)
class _Shard:
    name: str
    slots: tuple[Slot, ...]


class SafetensorsWriter:
    """Writes the shards in place; holds no tensor."""

    target = "safetensors"

    def __init__(self, folder: Path, product: Product, max_shard_size: int) -> None:
        """`max_shard_size` in bytes; a tensor that is larger has a shard of its own."""
        self._folder, self._product = folder, product
        self._order = list(slots(product.config))
        self._formats = {slot: _format_of(product, slot) for slot in self._order}
        self._shards = self._split(max_shard_size)
        self._place = {slot: shard.name for shard in self._shards for slot in shard.slots}
        self._files: dict[str, PlacedFile] = {}

    def declarations(self) -> Sequence[TensorDecl]:
        """Every tensor, in file order."""
        return [self._declared(slot) for slot in self._order]

    def format_of(self, slot: Slot) -> Format:
        """The type in which the source stores it."""
        return self._formats[slot]

    def open(self) -> None:
        """Write the headers and the index; reserve the rest of the files."""
        for shard in self._shards:
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            regions, offset = {}, 0
            for slot in shard.slots:
                decl = self._declared(slot)
                header[decl.name] = {
                    "dtype": decl.dtype,
                    "shape": list(decl.shape),
                    "data_offsets": [offset, offset + decl.nbytes],
                }
                rows = 1 if slot.role in VECTORS else decl.shape[0]
                regions[decl.name] = Region(offset, rows, decl.nbytes // rows)
                offset += decl.nbytes
            raw = json.dumps(header).encode()
            raw += b" " * (-len(raw) % 8)
            path = self._folder / shard.name
            with writing(path):
                path.write_bytes(len(raw).to_bytes(8, "little") + raw)
            start = 8 + len(raw)
            placed = {
                name: Region(start + r.offset, r.rows, r.row_bytes) for name, r in regions.items()
            }
            self._files[shard.name] = PlacedFile(path, start + offset, placed)
        if len(self._shards) > 1:
            total = sum(decl.nbytes for decl in self.declarations())
            places = {slot.name: self._place[slot] for slot in self._order}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            with writing(self._folder / INDEX):
                (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def outline(self) -> None:
        """Headers and index, and files of their full size without data."""
        self.open()
        self.abort()

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put rows in place."""
        self._files[self._place[slot]].write(slot.name, start, packed["rows"])

    def close(self) -> Sequence[Path]:
        """Check that every row was written; flush."""
        if not self._files:
            raise EmoExportError("the safetensors writer is not open")
        for file in self._files.values():
            file.close()
        return [file.path for file in self._files.values()]

    def placed(self) -> Sequence[PlacedFile]:
        """The shards, once they are open."""
        return list(self._files.values())

    def abort(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.abort()

    def _declared(self, slot: Slot) -> TensorDecl:
        shape, kind = shape_of(slot, self._product.config), self._formats[slot]
        rows = 1 if slot.role in VECTORS else shape[0]
        return TensorDecl(slot.name, shape, kind.name, kind.nbytes(rows, shape[-1]))

    def _split(self, most: int) -> list[_Shard]:
        groups: list[list[Slot]] = []
        size = 0
        for slot in self._order:
            nbytes = self._declared(slot).nbytes
            if not groups or size + nbytes > most:
                groups.append([])
                size = 0
            groups[-1].append(slot)
            size += nbytes
        if len(groups) == 1:
            return [_Shard(SINGLE, tuple(groups[0]))]
        return [
            _Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
            for number, group in enumerate(groups, 1)
        ]


def _format_of(product: Product, slot: Slot) -> Stored:
    """The source's type; F32 where the experts of a layer are stored in several."""
    layer = product.source.config.layers[slot.layer] if slot.expert >= 0 else None
    experts = range(layer.num_experts) if layer else (slot.expert,)
    kinds = {product.source.at(Slot(slot.role, slot.layer, e)).dtype for e in experts}
    return STORED[kinds.pop() if len(kinds) == 1 and kinds <= set(STORED) else "F32"]
