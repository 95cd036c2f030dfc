"""A GGUF model in several files: what is told when they don't belong together."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.files.gguf_parts import COUNT, NUMBER, TENSORS, part_name, read_model


def part(folder: Path, number: int, names: str, *, total: int = 3, said: int | None = None) -> Path:
    """One of two files, of which the first says that there are `total` tensors."""
    path = folder / part_name("m", number, 2)
    writer = gguf.GGUFWriter(path, "deepseek")
    writer.add_uint16(NUMBER, number if said is None else said)
    writer.add_uint16(COUNT, 2)
    writer.add_int32(TENSORS, total)
    for name in names:
        writer.add_tensor(name, np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_tensors_of_all_files_are_found(tmp_path: Path) -> None:
    first, second = part(tmp_path, 0, "a"), part(tmp_path, 1, "bc")
    model = read_model(first)
    assert [tensor.name for tensor in model.tensors] == ["a", "b", "c"]
    assert model.size == first.stat().st_size + second.stat().st_size
    with pytest.raises(EmoExportError, match="part 1 of 2 of a model; name the first"):
        read_model(second)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = part(tmp_path, 0, "a")
    with pytest.raises(EmoExportError, match=r"there is no file .*00002-of-00002\.gguf"):
        read_model(first)
    part(tmp_path, 1, "b")
    with pytest.raises(EmoExportError, match=r"has 3 tensors .*, its files 2"):
        read_model(first)
    part(tmp_path, 1, "ab")
    with pytest.raises(EmoExportError, match="a tensor of the same name"):
        read_model(first)
    part(tmp_path, 1, "bc", said=3)
    with pytest.raises(EmoExportError, match="says it is part 3, not 1"):
        read_model(first)
    with pytest.raises(EmoExportError, match="rename all of them"):
        read_model(first.rename(tmp_path / "model.gguf"))
