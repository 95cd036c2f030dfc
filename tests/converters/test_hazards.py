"""Values that are hard to store: each type's round trip, as others read it; refusals by place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from emo_export.converters.gguf import grids as ggml
from emo_export.converters.gguf.formats import GGML_FORMATS, SCALES_AT, GgmlFormat
from emo_export.converters.gguf.scaled import scaled
from emo_export.converters.onnx import grids as onnx
from emo_export.converters.onnx.formats import NBITS_FORMATS
from emo_export.errors import BadValueError, EmoExportError
from emo_export.interfaces import F32, Format, InputStatistics, Packed
from emo_export.model.importance import LEAST, steadied
from emo_export.model.names import Role, Slot
from emo_export.model.quantiser import Weighted
from emo_export.rounding.quantiser import Factors, Gptq
from tests.converters.hazards import (
    COLUMNS,
    FORMATS,
    LONG_TO_START,
    normal,
    read_elsewhere,
    table,
)
from tests.kit.command import Emo
from tests.kit.exporting import Array, open_product
from tests.kit.paths import ROOT

NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name in LONG_TO_START else ()) for name in FORMATS
]
LIMIT = 65504.0 / 2
"""What every type stores."""
OUTLIER = 2
ZEROS = slice(256, 512)
"""A super-block."""


def hard_rows() -> dict[str, Array]:
    """A row (COLUMNS,) for each case."""
    rows = {
        "ordinary": normal()[0],
        "zeros": np.zeros(COLUMNS),
        "minus zeros": np.full(COLUMNS, -0.0),
        "a block of zeros": normal()[0],
        "all alike": np.full(COLUMNS, 0.5),
        "both ends": np.where(np.arange(COLUMNS) % 2, LIMIT, -LIMIT),
        "an outlier": normal(largest=0.02)[0],
        "as large as can be": normal(largest=LIMIT)[0],
        "a scale that is subnormal": normal(largest=3e-6)[0],
        "a router's row": normal(largest=1e-15)[0],
        "hardly normal": normal(largest=1.2e-38)[0],
        "subnormal": normal(largest=1e-42)[0],
        "the smallest": np.full(COLUMNS, 1e-45),
    }
    rows["a block of zeros"][ZEROS] = 0
    rows["an outlier"][OUTLIER] = 3e4
    return {name: row.astype(np.float32) for name, row in rows.items()}


HARD = hard_rows()
ROWS = np.stack(list(HARD.values()))


def weights(dead: bool) -> F32:
    """Importance (COLUMNS,), of which half is zero, a super-block among them."""
    found = np.random.default_rng(8).random(COLUMNS).astype(np.float32) + np.float32(1e-3)
    if dead:
        found[1::2] = 0
        found[ZEROS] = 0
    return found


@functools.cache
def told(dead: bool) -> InputStatistics:
    """Second moments of correlated inputs, some columns of which are always zero."""
    rng = np.random.default_rng(9)
    inputs = rng.standard_normal((600, 64)) @ rng.standard_normal((64, COLUMNS))
    inputs = (inputs * np.sqrt(weights(dead))).astype(np.float32)
    moments = inputs.T @ inputs / np.float32(len(inputs))
    return InputStatistics(len(inputs), np.diag(moments).copy(), moments)


@functools.cache
def factors(dead: bool) -> Factors:
    return Factors()


Rounded = Callable[[F32], Packed]
GPTQ_TRIED = {"gguf:q4_0", "gguf:q4_k", "onnx:int2b32"}
"""In the default tests; all other types in the slow ones."""


def gptqs(kind: Format) -> dict[str, Rounded]:
    grid = ggml.grid_of(kind) if isinstance(kind, GgmlFormat) else onnx.grid_of(kind)
    if grid is None:
        return {}
    return {
        name: functools.partial(Gptq(kind, grid, factors(dead)).quantize, inputs=told(dead))
        for name, dead in (("gptq", False), ("gptq, dead columns", True))
    }


def own(kind: Format) -> dict[str, Rounded]:
    weighted: dict[str, Rounded] = {
        name: functools.partial(Weighted(kind).quantize, inputs=told(dead))
        for name, dead in (("weighted", False), ("dead columns", True))
    }
    return (
        weighted
        if getattr(kind, "needs_importance", False)
        else {"nearest": kind.quantize, **weighted}
    )


@pytest.mark.parametrize("name", NAMES)
def test_hard_rows_are_read_as_numbers_near_them(name: str) -> None:
    judge(FORMATS[name], own(FORMATS[name]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in GPTQ_TRIED else pytest.mark.slow) for n in FORMATS],
)
def test_hard_rows_are_as_near_by_gptq(name: str) -> None:
    judge(FORMATS[name], gptqs(FORMATS[name]))


def judge(kind: Format, roundings: dict[str, Rounded]) -> None:
    for rounding, quantize in roundings.items():
        packed = quantize(ROWS)
        kind.check(packed)
        found = kind.dequantize(packed)
        np.testing.assert_array_equal(found, read_elsewhere(kind, packed), err_msg=rounding)
        assert np.isfinite(found).all(), rounding
        rows = dict(zip(HARD, found, strict=True))
        for case in ("zeros", "minus zeros"):
            assert not rows[case].any(), (rounding, case)
        if "gptq" not in rounding:  # which makes up there for columns before
            assert not rows["a block of zeros"][ZEROS].any(), rounding
        # ggml makes zeros of a block without importance, whatever it holds.
        for part in (ZEROS, slice(0, 256)):
            off = np.linalg.norm((rows["ordinary"] - HARD["ordinary"])[part])
            assert off <= 0.7 * np.linalg.norm(HARD["ordinary"][part]), rounding
        # Of what is far below a float16 scale's smallest, nothing or little is left.
        for case in ("a router's row", "hardly normal", "subnormal", "the smallest"):
            assert (np.abs(rows[case]) <= 2 * np.abs(HARD[case]).max() + 1e-44).all(), (
                rounding,
                case,
            )
        assert np.abs(rows["a scale that is subnormal"]).max() <= 2e-5, rounding
        # One value that is large costs its neighbours their bits, and no block beyond.
        assert rows["an outlier"][OUTLIER] == pytest.approx(3e4, rel=0.2), rounding
        share = np.linalg.norm(rows["as large as can be"] - HARD["as large as can be"])
        assert share <= 0.7 * np.linalg.norm(HARD["as large as can be"]), rounding


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_is_refused_by_its_place(name: str, bad: float) -> None:
    kind, rows = FORMATS[name], normal(3)
    rows[2, 300] = bad
    with pytest.raises(BadValueError) as caught, np.errstate(invalid="ignore", over="ignore"):
        kind.check(kind.quantize(rows, np.ones(COLUMNS, np.float32)))
    # A type that ggml doesn't pack names the block.
    width = COLUMNS if name == "onnx:int8row" else kind.block
    assert caught.value.row == 2 and 0 <= 300 - caught.value.column < width
    exact = name.startswith("gguf") or name == "onnx:f32"
    assert not exact or caught.value.column == 300


@pytest.mark.parametrize("name", [name for name in GGML_FORMATS if name != "f32"])
def test_a_scale_that_is_no_number_is_found(name: str) -> None:
    """In each place where a block has one, and in no other."""
    kind = GGML_FORMATS[name]
    block, size = kind.block, kind.nbytes(1, kind.block)
    zeros = np.zeros((2, 3 * size), np.uint8)
    kind.check({"rows": zeros})
    for at in SCALES_AT.get(name, (0,)):
        packed = zeros.copy()
        packed[1, 2 * size + at : 2 * size + at + min(2, size)] = 255
        with pytest.raises(BadValueError) as caught:
            kind.check({"rows": packed})
        assert (caught.value.row, caught.value.column) == (1, 2 * block)
        elsewhere = read_elsewhere(kind, {"rows": packed})
        assert np.isfinite(elsewhere[0]).all()
        # gguf-py takes mxfp4's NaN for a large number.
        assert name == "mxfp4" or not np.isfinite(elsewhere[1, 2 * block :]).all()


def test_a_factor_that_overflows_is_refused() -> None:
    rows = np.full((2, 4), 1e38, np.float32)
    with pytest.raises(BadValueError, match="row 0, column 2: inf is beyond"):
        scaled(GGML_FORMATS["f32"], 10.0, first=2).quantize(rows)


def test_a_large_float32_overflows_in_few_bits_alone() -> None:
    """A scale that is searched may be larger than the one with which the extreme just fits."""
    rows = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    rows[0, ::2] = 0.9 * rows[0, ::2]
    for bits in (8, 4, 2):
        kind = NBITS_FORMATS[f"int{bits}b32"]
        with np.errstate(over="ignore"):
            packed = kind.quantize(rows)
            try:
                kind.check(packed)
            except BadValueError:
                continue
            assert np.isfinite(kind.dequantize(packed)).all()


def test_importance_is_steadied_by_a_power_of_two() -> None:
    given = np.array([3e19, 0, 1e-30, 1e19], np.float32)
    found = steadied(given)
    scale = found[0] / given[0]
    assert 1 <= found.max() < 2 and np.frexp(scale)[0] == 0.5
    np.testing.assert_array_equal(found, [given[0] * scale, LEAST, LEAST, given[3] * scale])
    np.testing.assert_array_equal(steadied(np.zeros(3, np.float32)), np.ones(3))
    tiny = steadied(np.array([1e-45, 0], np.float32))
    assert tiny[0] == 1 and tiny[1] == LEAST
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(EmoExportError, match="importance of column 1 is"):
            steadied(np.array([1, bad], np.float32))


def test_gptq_gives_way_where_it_moves_a_value_beyond_the_type() -> None:
    """Columns that are all but the same: what one rounds away, the next takes on."""
    kind = GGML_FORMATS["q4_0"]
    rows = normal(3, LIMIT * 1.99)
    inputs = np.ones((COLUMNS, COLUMNS), np.float32)
    own = InputStatistics(9, np.ones(COLUMNS, np.float32), inputs)
    gptq = Gptq(kind, ggml.grid_of(kind), Factors())
    packed = gptq.quantize(rows, own)
    kind.check(packed)
    error = np.linalg.norm(kind.dequantize(packed) - rows) / np.linalg.norm(rows)
    assert error < 1
    rows[2, 300] = 65600
    with pytest.raises(BadValueError, match="row 2, column 300: 65600 is beyond 65504"):
        gptq.quantize(rows, own)


CHEAP = sorted(set(FORMATS) - LONG_TO_START)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(CHEAP))
def test_any_numbers_are_read_as_numbers_or_refused(data: st.DataObject, name: str) -> None:
    kind = FORMATS[name]
    exponents = data.draw(hnp.arrays(np.int64, (2, 16), elements=st.integers(-149, 127)))
    fractions = data.draw(hnp.arrays(np.float64, (2, 16), elements=st.floats(-1.99, 1.99)))
    rows = np.tile((fractions * 2.0**exponents).astype(np.float32), COLUMNS // 16)
    largest = data.draw(st.sampled_from([1e-45, 1e-20, 1.0, 1e20]))
    importance = np.resize(np.array([largest, 0, largest / 3], np.float32), COLUMNS)
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            packed = kind.quantize(rows, importance)
            kind.check(packed)
        except BadValueError as error:
            assert abs(rows[error.row, error.column :]).max() > LIMIT * 0.99
            return
        found = read_elsewhere(kind, packed) if name.startswith("gguf") else kind.dequantize(packed)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_is_measured() -> None:
    written = (ROOT / "docs" / "numerics.md").read_text("utf-8")
    assert "\n".join(table()) in written


# --- exports -----------------------------------------------------------------------------------

ROUTED = "model.layers.1.mlp.experts.3.down_proj.weight"  # (64, 32)


def changed(folder: Path, change: Callable[[dict[str, Array]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


def _one(value: float) -> Callable[[dict[str, Array]], None]:
    def change(tensors: dict[str, Array]) -> None:
        tensors[ROUTED][5, 7] = value

    return change


def _large_products(tensors: dict[str, Array]) -> None:
    tensors["model.layers.0.mlp.experts.7.down_proj.weight"][:] = 1e38  # every token's


def _large_head(tensors: dict[str, Array]) -> None:
    tensors["lm_head.weight"][17] = 3e38


def test_a_scaled_row_that_overflows_is_named(synth: Path) -> None:
    product = open_product(synth)
    product.scales[1] = 2.0
    slot, rows = Slot(Role.DOWN, 1, 3), np.full((2, 4), 60000, np.float32)
    product.scaled(slot, rows, "F32", 5)
    with pytest.raises(EmoExportError, match=rf"{slot.name}: row 5, column 0: inf is .* F16"):
        product.scaled(slot, rows, "F16", 5)


@pytest.mark.parametrize(
    ("target", "change", "words"),
    [
        ("gguf:q4_0", _one(np.nan), "row 5, column 7: nan is not a finite number"),
        ("onnx:int4", _one(-np.inf), "row 5, column 7: -inf is not a finite number"),
        ("gguf:f16", _one(7e4), "row 5, column 7: 70000 is beyond 65504, the largest that f16"),
        ("gguf:f32", _large_products, "original: the reference's router logits of layer 1 are not"),
        ("gguf:f32", _large_head, "the reference's logits of text 0 are not finite (position 0, t"),
    ],
)
def test_an_export_stops_and_names_the_place(
    target: str,
    change: Callable[[dict[str, Array]], None],
    words: str,
    synth: Path,
    tmp_path: Path,
    emo: Emo,
) -> None:
    folder, out = changed(synth, change), tmp_path / "out"
    done = emo("export", folder, "-o", out, "--to", target)
    assert done.code == 2, done.err
    told_in = " ".join(done.err.split())
    assert words in told_in and (
        ROUTED in told_in or "layer 1" in told_in or "token 17: " in told_in
    )
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path != folder]
