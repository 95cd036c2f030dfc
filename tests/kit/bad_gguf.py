"""GGUF files with one thing wrong, made from good ones by gguf-py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Type

from emo_export.converters.gguf.reader import GgufReader
from emo_export.files.gguf_header import read_gguf
from emo_export.inspect.judgement import judge

Array = npt.NDArray[Any]
Edit = Callable[[str, Array], Array | None]


def rewrite(
    source: Path,
    path: Path,
    keys: Mapping[str, Any] | None = None,
    *,
    arch: str | None = None,
    edit: Edit | None = None,
    kinds: Mapping[str, Type] | None = None,
    rename: Mapping[str, str] | None = None,
    extra: Mapping[str, Array] | None = None,
) -> Path:
    """Write a GGUF anew: other keys (None: left out), architecture, float32 tensors and types.

    `edit` gets a tensor's name and float32 values, and gives others, or None to leave it out.
    `kinds` and `rename` go by the part of the name between `blk.N.` and `.weight`; `extra` are
    more tensors. Names of keys may begin with `ARCH.`.
    """
    reader = GgufReader(source)
    old = reader.fields["general.architecture"].contents()
    new = arch or old
    writer = gguf.GGUFWriter(path, new)
    changed = {name.replace("ARCH.", f"{new}."): value for name, value in (keys or {}).items()}
    _add_keys(writer, reader, changed, (f"{old}.", f"{new}."))
    for tensor in reader.tensors:
        _add(writer, tensor, edit, kinds or {}, rename or {})
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_keys(
    writer: gguf.GGUFWriter, reader: gguf.GGUFReader, changed: dict[str, Any], arch: tuple[str, str]
) -> None:
    old, new = arch
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        there = name.replace(old, new, 1) if name.startswith(old) else name
        value = changed.pop(there, entry.contents())
        if value is not None:
            sub = entry.types[1] if len(entry.types) > 1 else None
            writer.add_key_value(there, value, entry.types[0], sub)
    for name, value in changed.items():
        if value is not None:
            writer.add_key_value(name, value, _kind(value))


def _kind(value: Any) -> gguf.GGUFValueType:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    return gguf.GGUFValueType[kinds[type(value)]]


def _add(
    writer: gguf.GGUFWriter,
    tensor: Any,
    edit: Edit | None,
    kinds: Mapping[str, Type],
    rename: Mapping[str, str],
) -> None:
    parts = tensor.name.split(".")
    part = parts[2] if parts[0] == "blk" else parts[0]
    name = tensor.name.replace(part, rename.get(part, part))
    kind = kinds.get(part, tensor.tensor_type)
    if edit is None and kind == tensor.tensor_type:
        writer.add_tensor(name, tensor.data, raw_dtype=kind)
        return
    shape = [int(n) for n in reversed(tensor.shape)]
    values: Array | None = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    if edit is not None and values is not None:
        values = edit(tensor.name, values)
    if values is not None:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def of(level: str, path: Path) -> str:
    """What is found in a file at one level, one finding to a line."""
    found = judge(path, read_gguf(path))[1]
    return "\n".join(finding.text for finding in found if finding.level == level)


# --- edits -------------------------------------------------------------------------------------


def unpermute(heads: int) -> Edit:
    """q and k rows back from rope's neighbours to the halves of Hugging Face's checkpoints."""

    def edit(name: str, values: Array) -> Array:
        if ".attn_q." not in name and ".attn_k." not in name:
            return values
        rows, cols = values.shape
        return values.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)

    return edit


def no_shared(name: str, values: Array) -> Array | None:
    """Leave the shared expert out."""
    return None if "_shexp." in name else values


def fold(rows: Mapping[int, Array], shared: Mapping[str, Array], zeros: bool = True) -> Edit:
    """The shared expert as the last routed one; `rows`: its router row in each block.

    `shared`: tensors of the shared expert by name; what stays in its place is zeros.
    """

    def edit(name: str, values: Array) -> Array | None:
        if ".ffn_gate_inp." in name:
            return np.concatenate([values, rows[int(name.split(".")[1])][None]])
        if "_exps." in name:
            return np.concatenate([values, shared[name.replace("_exps.", "_shexp.")][None]])
        return (values * 0 if zeros else None) if "_shexp." in name else values

    return edit


def shared_of(source: Path) -> dict[str, Array]:
    """The shared expert's tensors of a GGUF, by name, as float32."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            [int(n) for n in reversed(tensor.shape)]
        )
        for tensor in GgufReader(source).tensors
        if "_shexp." in tensor.name
    }
