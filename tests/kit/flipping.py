"""Where each tensor of a folder lies, apart from our own readers, and flipping a bit of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo

_MEMBERS = re.compile(
    rb"PK\x03\x04.{26}([!-~]+)\.npy", re.DOTALL
)  # local header of a zip, 30 bytes


def tensors_at(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """(file, tensor, first byte, end), as gguf-py, onnx and a safetensors header say."""
    for path in sorted(folder.rglob("*.gguf")):
        for tensor in gguf.GGUFReader(path).tensors:
            start = int(tensor.data_offset)
            yield relative(path, folder), str(tensor.name), start, start + int(tensor.n_bytes)
    for path in sorted(folder.rglob("model.onnx")):
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                info = ExternalDataInfo(tensor)
                start, file = info.offset or 0, path.parent / info.location
                yield relative(file, folder), tensor.name, start, start + info.length
    for path in sorted(folder.rglob("*.npz")):
        raw = path.read_bytes()
        names = [found[1].decode() for found in _MEMBERS.finditer(raw)]
        starts = [found.start() for found in _MEMBERS.finditer(raw)]
        if names != list(np.load(path)):
            raise ValueError(f"{path}: {names} are not its arrays")
        for name, start, end in zip(
            names, starts, [*starts[1:], raw.index(b"PK\1\2")], strict=True
        ):
            yield relative(path, folder), name, start, end
    for path in sorted(folder.rglob("*.safetensors")):
        raw = path.read_bytes()
        head = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:head]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield relative(path, folder), name, head + begin, head + end


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit of a file; again, and it is as before."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
