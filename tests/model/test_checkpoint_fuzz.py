"""Random damage to a safetensors file: it reads, or EmoExportError names the file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import SINGLE
from emo_export.model.safetensors_file import read_header

SMALL = {
    "model.norm.weight": torch.arange(6.0),
    "lm_head.weight": torch.arange(12.0).reshape(3, 4).half(),
}
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


@given(flips=FLIPS, cut=st.none() | st.integers(0, 10**6))
def test_any_damage_reads_or_is_refused(flips: list[tuple[int, int]], cut: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SINGLE
        save_file(SMALL, file)
        data = bytearray(file.read_bytes())
        for place, value in flips:
            data[place % len(data)] = value
        file.write_bytes(data if cut is None else data[: cut % len(data)])
        _reads_or_is_refused(file)


def _reads_or_is_refused(file: Path) -> None:
    try:
        for tensor in read_header(file).values():
            assert 0 < tensor.nbytes <= file.stat().st_size
            tensor.rows(0, 1)
    except EmoExportError as error:
        assert str(file) in str(error)


GOOD = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
SCALARS = (
    st.sampled_from([None, "F32", "BF16", "I64", "6", float("inf"), float("nan"), 10**400])
    | st.sampled_from([0, 2, 3, 6, 12, 24])
    | st.booleans()
    | st.integers()
    | st.floats()
)
NUMBERS = st.lists(SCALARS, max_size=3)
FIELDS = st.fixed_dictionaries(
    {}, optional={"dtype": SCALARS, "shape": NUMBERS, "data_offsets": NUMBERS}
)


@settings(max_examples=60)
@given(changed=FIELDS, name=st.text(max_size=3), rest=st.sampled_from([0, 6, 12, 24]))
def test_any_header_reads_or_is_refused(changed: dict[str, Any], name: str, rest: int) -> None:
    header = {name: GOOD | changed}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SINGLE
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(rest))
        _reads_or_is_refused(file)
