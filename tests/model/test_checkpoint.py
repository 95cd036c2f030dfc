"""Checkpoint: values as the safetensors library reads them, whatever their storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import SINGLE, Checkpoint
from emo_export.model.names import Role, Slot
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, make_checkpoint

DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"  # (64, 32) in a synthetic checkpoint
NORM = "model.norm.weight"


def _truth(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _rows(name: str, tensors: Mapping[str, Any]) -> int:
    return 1 if len(tensors[name].shape) == 1 else int(tensors[name].shape[0])


def _check_values(folder: Path) -> None:
    checkpoint, truth = Checkpoint.open(folder), _truth(folder)
    assert set(checkpoint) == set(truth)
    assert len(checkpoint) == len(truth)
    for name, tensor in checkpoint.items():
        wide = truth[name].float().numpy()
        assert tensor.shape == wide.shape
        read = tensor.rows(0, _rows(name, truth))
        assert read.dtype == np.float32
        # As integers: a zero's sign counts too.
        np.testing.assert_array_equal(read.ravel().view(np.uint32), wide.ravel().view(np.uint32))


@pytest.mark.parametrize("folder", [*(GOLDEN / name for name in GOLDENS), NANO], ids=str)
def test_committed_checkpoints_read_bit_exact(folder: Path) -> None:
    _check_values(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_reads_bit_exact(name: str, tmp_path: Path) -> None:
    _check_values(make_checkpoint(tmp_path, **CONFIGS[name]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_and_dtypes_read_bit_exact(dtype: str, shards: int, tmp_path: Path) -> None:
    _check_values(make_checkpoint(tmp_path, dtype=dtype, shards=shards))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_slices(dtype: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, dtype=dtype)
    tensor, whole = Checkpoint.open(folder)[DOWN], _truth(folder)[DOWN].float().numpy()
    assert tensor.nbytes == 64 * 32 * whole.itemsize // (1 if dtype == "float32" else 2)
    for start, stop in ((0, 1), (5, 9), (63, 64), (0, 64), (7, 7)):
        np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop])


def test_slots_find_their_tensors(synth: Path) -> None:
    checkpoint = Checkpoint.open(synth)
    assert checkpoint.at(Slot(Role.DOWN, 1, 3)) is checkpoint[DOWN]
    assert checkpoint.at(Slot(Role.FINAL_NORM)) is checkpoint[NORM]


def test_opening_reads_no_data(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    file = folder / SINGLE
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    # Every value a NaN: anything that looked at them would say so.
    file.write_bytes(whole[:header] + b"\xff" * (len(whole) - header))
    with pytest.raises(EmoExportError, match="nan is not a finite number"):
        Checkpoint.open(folder)[NORM].rows(0, 1)
