"""Importance matrix files as llama-imatrix writes them, made with gguf-py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import VECTORS, Role, shape_of, slots
from tests.kit.exporting import Array
from tests.kit.synth import CONFIGS, make_config

UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
KEYS: Mapping[str, Any] = {
    "general.type": "imatrix",
    "imatrix.datasets": ["/data/wiki.train.raw"],
    "imatrix.chunk_count": 3,
    "imatrix.chunk_size": 256,
}


def config_named(name: str) -> EmoConfig:
    return EmoConfig.from_dict(make_config(**CONFIGS[name]))


def random_matrix(config: EmoConfig, seed: int = 0) -> ImportanceMatrix:
    """A row for everything that is measured; two experts saw no token."""
    rng = np.random.default_rng(seed)
    matrix = ImportanceMatrix("a.txt, b.jsonl", 1000)
    for slot in slots(config):
        if slot.role not in UNMEASURED:
            unseen = slot.expert in (0, 2) and slot.expert not in config.layers[slot.layer].forced
            sums = rng.random(shape_of(slot, config)[1], np.float32) * np.float32(not unseen)
            matrix.sums[slot] = sums
            matrix.counts[slot] = 0 if unseen else int(rng.integers(1, 1 << 20))
    return matrix


def assert_same_rows(found: ImportanceMatrix, want: ImportanceMatrix) -> None:
    """Bit for bit."""
    assert found.counts == want.counts and set(found.sums) == set(want.sums)
    for slot, sums in want.sums.items():
        assert found.sums[slot].tobytes() == sums.tobytes(), slot
        row, expected = found.row(slot), want.row(slot)
        assert row is not None and expected is not None
        assert row.tobytes() == expected.tobytes()


def tensors_of(path: Path) -> dict[str, Array]:
    """What gguf-py's reader finds, copied."""
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def write_gguf(path: Path, tensors: Mapping[str, Array], keys: Mapping[str, Any] = KEYS) -> Path:
    """Keys (strings, unsigned numbers, lists of strings) and tensors, nothing else."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
