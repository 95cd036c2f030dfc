"""A GGUF model in several files, as llama.cpp splits one: NAME-00001-of-00002.gguf and so on.

The first holds the keys, each says which it is. Source: llama.cpp `llama-model-loader.cpp` and
`llama_split_path` (the names, which must agree).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufFile, read_gguf

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MOST_PARTS = 1024
_FIRST = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")


def part_name(stem: str, number: int, count: int) -> str:
    """The name of a part, counted from 0."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def part_paths(path: Path, file: GgufFile) -> list[Path]:
    """All files of a model whose first is `path`, with `file` for its header.

    Raises EmoExportError where the others can't be told from it.
    """
    count = file.keys.get(COUNT, 1)
    if count == 1:
        return [path]
    found = _FIRST.fullmatch(path.name)
    if type(count) is not int or not 1 < count <= MOST_PARTS or file.keys.get(NUMBER) != 0:
        raise EmoExportError(
            f"{path}: is part {file.keys.get(NUMBER)} of {count} of a model; name the first, which "
            "ends in -00001-of- and their number"
        )
    if found is None or int(found[2]) != count:
        raise EmoExportError(
            f"{path}: is the first of {count} files, whose name must end in "
            f"{part_name('', 0, count)}; rename all of them"
        )
    return [path.with_name(part_name(found[1], number, count)) for number in range(count)]


def read_model(path: Path) -> GgufFile:
    """The header of a model with the tensors of all its files; `path` is the first or the only one.

    A tensor's offset is that in its own file. Raises EmoExportError as `read_gguf` does, and for
    parts that are missing or of another model.
    """
    first = read_gguf(path)
    paths = part_paths(path, first)
    tensors, size = first.tensors, first.size
    for number, part in enumerate(paths[1:], 1):
        file = read_gguf(part)
        if file.keys.get(NUMBER) != number:
            raise EmoExportError(f"{part}: says it is part {file.keys.get(NUMBER)}, not {number}")
        tensors, size = tensors + file.tensors, size + file.size
    if len(paths) > 1 and first.keys.get(TENSORS) != len(tensors):
        raise EmoExportError(
            f"{path}: its model has {first.keys.get(TENSORS)} tensors ({TENSORS}), its files "
            f"{len(tensors)}; are they of one export?"
        )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise EmoExportError(f"{path}: two files of the model have a tensor of the same name")
    return replace(first, tensors=tensors, size=size)
