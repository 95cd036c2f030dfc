"""The grids of ggml's types: scales that ggml chose, and codes that somebody else may choose.

Source: ggml-common.h (block layouts), ggml-quants.c and gguf-py's quants.py (what a block decodes
to). ggml weighs the columns of a few types by the mean square of what it is given, which is the W
columns here and a whole row elsewhere, so that its scales may differ a little from those of rows
that are packed whole. Types whose codes stand for vectors of a codebook have no grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from emo_export.converters.gguf.bit_fields import Bytes, Plane, pack, unpack
from emo_export.converters.gguf.formats import GGML_FORMATS, GgmlFormat
from emo_export.converters.gguf.scaled import Scaled
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.grid import Codes, Fixed, Grid


@dataclass(frozen=True)
class Scale:
    """Scales in a block: a float16 at byte `half`, times the integers of `planes` less `bias`.

    Each of the `count` integers, which may be `signed`, is for an equal share of the block's
    columns. Without planes the float16 is the one scale. `exponent`: an E8M0 byte in its place.
    """

    half: int
    planes: tuple[Plane, ...] = ()
    count: int = 1
    bias: int = 0
    signed: bool = False
    exponent: bool = False

    def read(self, blocks: Bytes) -> F32:
        """Blocks (B, bytes) -> scales (B, count) float32."""
        if self.exponent:
            return _power_of_two(blocks[:, self.half : self.half + 1])
        half = np.ascontiguousarray(blocks[:, self.half : self.half + 2]).view(np.float16)
        scale: F32 = half.astype(np.float32)
        if not self.planes:
            return scale
        integers = unpack(blocks, self.planes, self.count)
        if self.signed:
            return scale * integers.view(np.int8).astype(np.float32)
        return scale * (integers.astype(np.float32) - np.float32(self.bias))


def _power_of_two(exponents: Bytes) -> F32:
    """E8M0 bytes -> half of what they stand for, as the doubled levels of mxfp4 want it."""
    wide = exponents.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Layout:
    """A type's block: where its codes and scales are.

    `levels` ascend, and `stored` holds each one's bits; None: the level's number itself. What
    `minimum` gives is added to a block's values, times `sign`.
    """

    levels: tuple[int, ...]
    codes: tuple[Plane, ...]
    scale: Scale
    minimum: Scale | None = None
    sign: int = 1
    stored: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GgmlGrid:
    """The grid of one ggml type, of which W is a block."""

    format: GgmlFormat
    layout: Layout

    @property
    def columns(self) -> int:
        """W: a block."""
        return self.format.block

    def fix(self, rows: F32, importance: F32 | None) -> Fixed:
        """Have ggml choose scales for rows (N, W), with importance (W,) where it is given.

        Raises EmoExportError for another width, and where a value is too large for the type.
        """
        self._check(rows.shape, len(rows))
        return self.fixed(self.format.quantize(rows, importance))

    def fixed(self, packed: Packed) -> Fixed:
        """The scales in packed blocks {"rows": (N, bytes of a block)}."""
        layout, blocks = self.layout, packed["rows"]
        scale = self._spread(layout.scale.read(blocks))
        offset = np.zeros_like(scale)
        if layout.minimum is not None:
            offset = self._spread(layout.minimum.read(blocks)) * np.float32(layout.sign)
        return Fixed(scale, offset, np.array(layout.levels, np.float32), packed)

    def pack(self, fixed: Fixed, codes: Codes) -> Packed:
        """Codes (N, W), numbers of levels -> {"rows": (N, bytes of a block)}, scales as they were.

        Raises EmoExportError for another shape or for a code without a level.
        """
        layout, blocks = self.layout, fixed.packed["rows"].copy()
        self._check(codes.shape, len(blocks))
        if codes.max(initial=0) >= len(layout.levels):
            raise EmoExportError(
                f"code {codes.max()} for {self.format.name}, which has {len(layout.levels)} levels"
            )
        numbers = np.ascontiguousarray(codes, np.uint8)
        if layout.stored is not None:
            numbers = np.array(layout.stored, np.uint8)[numbers]
        pack(blocks, layout.codes, numbers)
        return {"rows": blocks}

    def _spread(self, scales: F32) -> F32:
        return np.repeat(scales, self.columns // scales.shape[1], axis=1)

    def _check(self, shape: tuple[int, ...], rows: int) -> None:
        if shape != (rows, self.columns):
            raise EmoExportError(
                f"{shape} in place of {(rows, self.columns)} for a block of {self.format.name}"
            )


@dataclass(frozen=True)
class ScaledGrid:
    """The grid of rows that are stored multiplied by `factor`."""

    inner: Grid
    factor: float

    @property
    def columns(self) -> int:
        """W: the inner grid's."""
        return self.inner.columns

    def fix(self, rows: F32, importance: F32 | None) -> Fixed:
        """Scales of the multiplied rows (N, W), the factor divided out again."""
        factor = np.float32(self.factor)
        fixed = self.inner.fix(rows * factor, importance)
        return replace(fixed, scale=fixed.scale / factor, offset=fixed.offset / factor)

    def pack(self, fixed: Fixed, codes: Codes) -> Packed:
        """Codes (N, W) -> packed rows: the inner grid's."""
        return self.inner.pack(fixed, codes)


def grid_of(format: Format) -> Grid | None:
    """The grid of a ggml type; None where a column can't be rounded by itself, or needs no grid.

    None too where only some columns of a matrix are multiplied by a factor (a dense layer's `down`
    in a graph that weighs it), since a grid is not told which columns it is given.
    """
    if isinstance(format, Scaled):
        inner = grid_of(format.inner)
        return None if inner is None or format.first else ScaledGrid(inner, format.factor)
    if isinstance(format, GgmlFormat):
        return _GRIDS.get(format.name)
    raise TypeError(f"{format.name} is no ggml type")


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_INT8 = tuple(range(-127, 128))  # ggml never stores -128
# Of doubled levels, the bits; the fourth is the sign, and there is no minus zero.
_FP4 = {level: bits for bits, level in enumerate((0, 1, 2, 3, 4, 6, 8, 12))}
_FP4 |= {-level: bits + 8 for level, bits in _FP4.items() if level}


def _six_bits(start: int, low: int) -> tuple[Plane, ...]:
    """Eight 6-bit numbers of q4_k and q5_k: four from byte `start` on, which hold bits of others.

    The other four have their lower half in bytes 12 to 15 from bit `low` on.
    """
    return (
        Plane(start, 4, 6, count=4),
        Plane(12, 4, 4, low=low, first=4, count=4),
        Plane(start, 4, 2, up=4, low=6, first=4, count=4),
    )


_SCALE_K, _MIN_K = Scale(0, _six_bits(4, 0), 8), Scale(2, _six_bits(8, 4), 8)

_LAYOUTS: Mapping[str, Layout] = {
    "q4_0": Layout(tuple(range(-8, 8)), (Plane(2, 16, 4),), Scale(0)),
    "q4_1": Layout(tuple(range(16)), (Plane(4, 16, 4),), Scale(0), Scale(2)),
    "q5_0": Layout(tuple(range(-16, 16)), (Plane(6, 16, 4), Plane(2, 1, 1, up=4)), Scale(0)),
    "q5_1": Layout(tuple(range(32)), (Plane(8, 16, 4), Plane(4, 1, 1, up=4)), Scale(0), Scale(2)),
    "q8_0": Layout(_INT8, (Plane(2, 32, 8),), Scale(0), stored=tuple(n & 0xFF for n in _INT8)),
    "iq4_nl": Layout(_IQ4, (Plane(2, 16, 4),), Scale(0)),
    "mxfp4": Layout(
        tuple(sorted(_FP4)),
        (Plane(1, 16, 4),),
        Scale(0, exponent=True),
        stored=tuple(_FP4[level] for level in sorted(_FP4)),
    ),
    "iq4_xs": Layout(
        _IQ4, (Plane(8, 16, 4),), Scale(0, (Plane(4, 1, 4), Plane(2, 1, 2, up=4)), 8, bias=32)
    ),
    "q2_k": Layout(
        tuple(range(4)),
        (Plane(16, 32, 2),),
        Scale(80, (Plane(0, 16, 4, count=16),), 16),
        Scale(82, (Plane(0, 16, 4, low=4, count=16),), 16),
        sign=-1,
    ),
    "q3_k": Layout(
        tuple(range(-4, 4)),
        (Plane(32, 32, 2), Plane(0, 32, 1, up=2)),
        Scale(108, (Plane(96, 8, 4), Plane(104, 4, 2, up=4)), 16, bias=32),
    ),
    "q4_k": Layout(tuple(range(16)), (Plane(16, 32, 4),), _SCALE_K, _MIN_K, sign=-1),
    "q5_k": Layout(
        tuple(range(32)), (Plane(48, 32, 4), Plane(16, 32, 1, up=4)), _SCALE_K, _MIN_K, sign=-1
    ),
    "q6_k": Layout(
        tuple(range(-32, 32)),
        (Plane(0, 64, 4), Plane(128, 32, 2, up=4)),
        Scale(208, (Plane(192, 16, 8),), 16, signed=True),
    ),
}
_GRIDS: Mapping[str, Grid] = {
    name: GgmlGrid(GGML_FORMATS[name], layout) for name, layout in _LAYOUTS.items()
}
